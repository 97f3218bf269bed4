"""What the other role and the reciprocal pair are worth, on real ratings: AUC and average precision, split in time.

    python benchmarks/ratings.py [--shared ../shared]

The ratings of Bitcoin OTC (who trusts whom; a negative rating stands for fraud) go through the pipeline as it is:
ingest, features, dataset, train, judge, with config/ratings.toml. The model is tested on the last year, and learns
from what was known before it. It is trained twice: with the table as it stands, and with a table without the rows
that look an entity up in its other role or read a pair. The intervals are the 95 % of the judge's bootstrap. The last
line is one JSON object.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from fraud_poc.core.settings import load_settings  # noqa: E402
from fraud_poc.data.ingest import ingest  # noqa: E402
from fraud_poc.features.batch import compute_features  # noqa: E402
from fraud_poc.features.rows import PAIR, parse_rows  # noqa: E402
from fraud_poc.model.acceptance import judge_model  # noqa: E402
from fraud_poc.model.dataset import make_dataset  # noqa: E402
from fraud_poc.model.train import train_model  # noqa: E402

CONFIG = ROOT / "config" / "ratings.toml"


def judged(folder: Path, rows: list[str]) -> dict:
    "The judge's metrics of a model with some rows, on the log in a folder."
    settings = load_settings(CONFIG, {"batch.folder": str(folder), "features.rows": rows})
    compute_features(settings)
    make_dataset(settings)
    train_model(settings)
    return judge_model(settings)["metrics"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--shared",
        type=Path,
        default=Path(os.environ.get("FRAUD_POC_SHARED") or ROOT.parent / "shared"),
        help="folder with data/bitcoin_otc (default: %(default)s)",
    )
    source = parser.parse_args().shared / "data" / "bitcoin_otc" / "ratings.parquet"
    if not source.exists():
        print(f"skipped: no {source}. Set FRAUD_POC_SHARED or --shared to the folder that holds data/bitcoin_otc")
        return 0
    lines = load_settings(CONFIG).features.rows
    plain = [line for line in lines if not any(row.role or PAIR in row.by for row in parse_rows(line))]
    with tempfile.TemporaryDirectory() as place:
        ingest(load_settings(CONFIG, {"batch.folder": place}), str(source))
        found = {name: judged(Path(place), rows) for name, rows in (("before", plain), ("with roles and pairs", lines))}
    for name, metrics in found.items():
        print(f"{name:<22}", {key: metrics[key] for key in ("auc", "average_precision")})
    before, after = found.values()
    value = lambda metrics, name: metrics[name]["value"]
    result = {"auc": value(after, "auc"), "ap": value(after, "average_precision")}
    earlier = {"auc_before": value(before, "auc"), "ap_before": value(before, "average_precision")}
    print(json.dumps(result | earlier))
    return 0


if __name__ == "__main__":
    sys.exit(main())
