"""How good is the model on the Fraud Detection Handbook's test week, beside the models that the book publishes?

    python benchmarks/handbook.py [--shared ../shared] [--test-start 2018-08-08] [--scores FOLDER]

The book's protocol (chapter 3): train on 2018-07-25 to 31, a gap of seven days in which labels come in, test on
2018-08-08 to 14 without the customers that are known to be compromised. A label is known seven days after its
transaction. Two rows of ours: trained on the book's seven days, and on the ninety days before the gap, which a bank
would have. Both use only labels that were known before the test week began; both go through the pipeline as it is
(ingest, features, dataset, train) with config/cards.toml. Scores go to a file, and the judge is handbook_eval.py,
which is no part of this project. Each row stands twice: as served, with labels of the gap that come in during the
test week as the protocol has it, and with label features frozen when the week begins.

The feature table and the numbers of the ninety days were tuned on the four weeks before (test weeks from 2018-07-04
to 25), by the same protocol, with labels that were all known before the test week began; those of the seven days were
not tuned. `--test-start` runs such an earlier week, with the log cut off behind its end, so that nothing of a later
day can show. The last line is one JSON object with the better row, as served.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from fraud_poc.core.settings import Settings, load_settings  # noqa: E402
from fraud_poc.data.ingest import ingest  # noqa: E402
from fraud_poc.features.batch import compute_features  # noqa: E402
from fraud_poc.model.dataset import make_dataset, read_split  # noqa: E402
from fraud_poc.model.train import train  # noqa: E402

DAY = np.timedelta64(1, "D")
FIRST_DAY = np.datetime64("2018-04-01")
PUBLISHED = {  # AUC ROC, average precision, card precision at 100
    "logistic regression": (0.871, 0.606, 0.291),
    "decision tree, depth 2": (0.763, 0.496, 0.241),
    "random forest": (0.867, 0.658, 0.287),
    "XGBoost": (0.862, 0.639, 0.273),
    "feed-forward network": (0.864, 0.653, 0.286),
}
# days of training -> settings. Of ninety days a quarter of the legitimate transactions is drawn, each of which stands
# for four, and another quarter for each seed
ROWS = {
    7: {"model.trees": 150, "model.max_depth": 3, "model.learning_rate": 0.05},
    90: {"model.trees": 300, "model.max_depth": 4, "model.learning_rate": 0.05, "training.legitimate_share": 0.25},
}
SEEDS = (7, 8, 9)  # the log-odds of their models are averaged


def prepare(source: Path, folder: Path, end: np.datetime64, threads: int) -> float:
    "Ingest the transactions before `end` and compute their features; seconds."
    start, table = time.perf_counter(), pq.read_table(source)
    pq.write_table(
        table.filter(pc.less(table["TX_DATETIME"], pa.scalar(end.astype("datetime64[ms]")))), folder / "raw.parquet"
    )
    settings = load_settings(
        ROOT / "config" / "cards.toml", {"batch.folder": str(folder / "cards"), "batch.threads": threads}
    )
    ingest(settings, str(folder / "raw.parquet"))
    compute_features(settings)
    return time.perf_counter() - start


def settings_for(folder: Path, days: int, seed: int, threads: int) -> Settings:
    """The windows of the protocol.

    The model learns from all days before the gap: the number of trees was settled on earlier weeks.
    """
    changes = {
        "batch.folder": str(folder / "cards"),
        "batch.threads": threads,
        "training.test_days": 7,
        "training.delay": "7d",
        "training.train_days": days,
        "training.validation_days": 1,
        "model.early_stopping": 0,
        "training.seed": seed,
    }
    return load_settings(ROOT / "config" / "cards.toml", changes | ROWS[7 if days == 7 else 90])


def scores(folder: Path, days: int, threads: int, start: np.datetime64) -> dict[str, pa.Table]:
    """Scores of the transactions of the test week: as served, and with frozen label features.

    Label features are frozen when the week begins, as if no label came in during it.
    """
    total = {"": 0, ", labels frozen": 0}
    for seed in SEEDS:
        settings = settings_for(folder, days, seed, threads)
        manifest = make_dataset(settings)
        assert manifest["windows"]["cutoff"] == str(start), manifest["windows"]
        learnt = [read_split(settings, split)[:3] for split in ("train", "validation")]
        grown = train(
            settings.model, [lambda rows=rows: rows for rows in learnt], manifest["features"], seed, threads=threads
        )
        for name in total:
            test = read_split(settings, "test", frozen=bool(name))
            total[name] = total[name] + grown.booster.inplace_predict(test.features, predict_type="margin").astype(
                np.float64
            )
    return {
        name: pa.table({"transaction_id": test.rows["id"].cast(pa.int64()), "score": margins / len(SEEDS)})
        for name, margins in total.items()
    }


def judged(shared: Path, table: pa.Table, path: Path, start: np.datetime64) -> dict[str, float]:
    "What handbook_eval.py says of the scores."
    pq.write_table(table, path)
    command = [
        sys.executable,
        str(shared / "tools" / "handbook_eval.py"),
        str(path),
        "--raw",
        str(shared / "data" / "handbook" / "transactions.parquet"),
        "--train-start",
        str(start - 14 * DAY),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"handbook_eval.py ended with {done.returncode}: {done.stderr or done.stdout}")
    read = lambda name: float(re.search(rf"^{name}\s+([\d.]+)", done.stdout, re.M)[1])
    return {"auc": read("AUC ROC"), "ap": read("Average precision"), "cp100": read("Card Precision@100")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--shared",
        type=Path,
        default=Path(os.environ.get("FRAUD_POC_SHARED") or ROOT.parent / "shared"),
        help="folder with data/handbook and tools (default: %(default)s)",
    )
    parser.add_argument(
        "--test-start", default="2018-08-08", help="first day of the test week (default: %(default)s, the book's)"
    )
    parser.add_argument("--scores", type=Path, help="keep the score files in this folder")
    parser.add_argument("--threads", type=int, default=0, help="0 = one for each core")
    given = parser.parse_args()
    source = given.shared / "data" / "handbook" / "transactions.parquet"
    if not source.exists():
        print(
            f"skipped: no {source}. Set FRAUD_POC_SHARED or --shared to the folder that holds data/handbook and "
            "tools/handbook_eval.py"
        )
        return 0
    start, rows = np.datetime64(given.test_start), {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        print(f"ingest and features: {prepare(source, folder, start + 7 * DAY, given.threads):.0f} s", flush=True)
        for days in (7, min(90, int((start - 7 * DAY - FIRST_DAY) / DAY))):
            begun = time.perf_counter()
            for name, table in scores(folder, days, given.threads, start).items():
                target = (given.scores or folder) / f"scores_{days}_days{'_frozen' * bool(name)}.parquet"
                target.parent.mkdir(parents=True, exist_ok=True)
                rows[f"ours, {days} days{name}"] = judged(given.shared, table, target, start)
            print(f"trained on {days} days: {time.perf_counter() - begun:.0f} s", flush=True)
    print(f"\n{'model':<30}{'AUC ROC':>9}{'average precision':>19}{'card precision at 100':>23}")
    if given.test_start == "2018-08-08":
        for name, values in PUBLISHED.items():
            print(f"{name:<30}{values[0]:>9.3f}{values[1]:>19.3f}{values[2]:>23.3f}")
    for name, r in rows.items():
        print(f"{name:<30}{r['auc']:>9.4f}{r['ap']:>19.4f}{r['cp100']:>23.4f}")
    print(json.dumps(max((found for name, found in rows.items() if "frozen" not in name), key=lambda r: r["ap"])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
