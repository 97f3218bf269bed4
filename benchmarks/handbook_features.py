"""Do our features equal those that the authors of the Fraud Detection Handbook computed?

    python benchmarks/handbook_features.py [--data ../shared/data/handbook] [--all]

The raw transactions go through ingest and the features step with config/cards.toml; the results are compared with
features_april_may.parquet, which nobody of this project made. Customers: the authors count the current transaction
in, we do not, so theirs are our count + 1 and (our sum + amount) / (our count + 1). Terminals: equal as they stand,
with rate 0 for their empty windows. Transactions of one customer in the same second, which have no defined order, are
left out. Means and rates are compared in float64, and the float32 of the feature files with that float64, bit for
bit. The last line is one JSON object; the exit code is 1 when anything differs.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support import oracle  # noqa: E402

from fraud_poc.core.settings import Settings, load_settings  # noqa: E402
from fraud_poc.data.ingest import ingest  # noqa: E402
from fraud_poc.data.log import read_manifest, read_part  # noqa: E402
from fraud_poc.features.batch import compute_features  # noqa: E402
from fraud_poc.features.table import build_table  # noqa: E402

DAYS = (1, 7, 30)


def april_and_may(source: Path, target: Path) -> None:
    "The part of the raw file that the authors' features cover."
    table = pq.read_table(source)
    pq.write_table(table.filter(pc.less(table["TX_DATETIME"], pa.scalar(np.datetime64("2018-06-01", "ms")))), target)


def features_of(raw: Path, folder: Path) -> tuple[Settings, dict[str, float]]:
    "Ingest and compute; what the steps took in seconds."
    settings = load_settings(ROOT / "config" / "cards.toml", {"batch.folder": str(folder)})
    took = {}
    for name, step in [
        ("ingest", lambda: ingest(settings, str(raw))),
        ("features", lambda: compute_features(settings)),
    ]:
        start = time.perf_counter()
        step()
        took[name] = time.perf_counter() - start
    return settings, took


def comparison(settings: Settings, theirs: pd.DataFrame) -> pd.DataFrame:
    """For each of the authors' features: rows compared, rows that differ, largest relative difference.

    Counts differ in any way, means and rates by more than 1e-9.
    """
    names, exact = build_table(settings).names, oracle.float64_of_log(settings)
    vectors = oracle.of_batch(settings)[0]
    events = pd.concat(
        [
            read_part(settings.batch.folder, "events", part["name"], ["id", "time", "CUSTOMER_ID_key"]).to_pandas()
            for part in read_manifest(settings.batch.folder)["parts"]
        ],
        ignore_index=True,
    )
    ours = pd.DataFrame(exact, columns=names)
    ours.insert(0, "float32", (vectors.view(np.uint32) == exact.astype(np.float32).view(np.uint32)).all(1))
    ours.insert(0, "tie", events.duplicated(["CUSTOMER_ID_key", "time"], keep=False))
    ours.insert(0, "TRANSACTION_ID", events["id"].astype(np.int64))
    both = theirs.merge(ours, on="TRANSACTION_ID", validate="one_to_one")
    assert len(both) == len(theirs), f"{len(theirs) - len(both)} of the authors' transactions are not in the log"
    found = [
        {
            "feature": "float32 of the files",
            "rows": len(both),
            "differing": int((~both["float32"]).sum()),
            "largest": 0.0,
        }
    ]
    for name, got in {"TX_DURING_WEEKEND": both["weekend"], "TX_DURING_NIGHT": both["night"]}.items():
        found.append(compared(name, both[name], got))
    ties, alone = int(both["tie"].sum()), both[~both["tie"]]
    for d in DAYS:
        count = alone[f"count_{d}d_by_CUSTOMER_ID"] + 1
        total = alone[f"TX_AMOUNT_sum_{d}d_by_CUSTOMER_ID"] + alone["TX_AMOUNT"]
        risk = f"{d}d_delay7d_by_TERMINAL_ID"
        for name, frame, got in [
            (f"CUSTOMER_ID_NB_TX_{d}DAY_WINDOW", alone, count),
            (f"CUSTOMER_ID_AVG_AMOUNT_{d}DAY_WINDOW", alone, total / count),
            (f"TERMINAL_ID_NB_TX_{d}DAY_WINDOW", both, both[f"count_{risk}"]),
            (f"TERMINAL_ID_RISK_{d}DAY_WINDOW", both, both[f"fraud_rate_{risk}"].fillna(0.0)),
        ]:
            found.append(compared(name, frame[name], got))
    frame = pd.DataFrame(found)
    frame.attrs["ties"] = ties
    return frame


def compared(name: str, theirs: pd.Series, ours: pd.Series) -> dict:
    "One feature of all rows."
    theirs, ours = theirs.to_numpy(np.float64), ours.to_numpy(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.where(theirs == ours, 0.0, np.abs(theirs - ours) / np.abs(theirs))
    allowed = 1e-9 if "AVG" in name or "RISK" in name else 0.0
    return {
        "feature": name,
        "rows": len(theirs),
        "differing": int((~(relative <= allowed)).sum()),
        "largest": float(relative.max()),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    shared = os.environ.get("FRAUD_POC_SHARED") or ROOT.parent / "shared"
    parser.add_argument(
        "--data",
        type=Path,
        default=Path(shared) / "data" / "handbook",
        help="folder of the handbook's files (default: %(default)s)",
    )
    parser.add_argument("--all", action="store_true", help="features of all transactions, not of April and May alone")
    given = parser.parse_args()
    if not given.data.is_dir():
        parser.error(f"no folder {given.data}: name the one with transactions.parquet by --data")
    with tempfile.TemporaryDirectory() as folder:
        raw = given.data / "transactions.parquet"
        if not given.all:
            raw = Path(folder) / "raw.parquet"
            april_and_may(given.data / "transactions.parquet", raw)
        settings, took = features_of(raw, Path(folder) / "cards")
        frame = comparison(settings, pq.read_table(given.data / "features_april_may.parquet").to_pandas())
        events = read_manifest(settings.batch.folder)["ingests"][0]["events"]
    print(frame.to_string(index=False, formatters={"rows": "{:,}".format, "largest": "{:.1e}".format}))
    print(
        f"\n{events:,} transactions: ingest {took['ingest']:.1f} s, features {took['features']:.1f} s; "
        f"{frame.attrs['ties']} rows with ties left out for customers"
    )
    print(
        json.dumps(
            {
                "events": events,
                "compared": int(frame["rows"].max()),
                "differing": int(frame["differing"].sum()),
                "largest": frame["largest"].max(),
                "ties": frame.attrs["ties"],
            }
        )
    )
    return int(frame["differing"].sum() > 0)


if __name__ == "__main__":
    sys.exit(main())
