"""What does the decision policy cost, beside letting all pass, blocking all, and blocking from a probability of 0.5?

    python benchmarks/money.py [--orders 300000] [--shared ../shared] [--bootstrap 200]

On two sets of data, each through the pipeline as it is (ingest, features, dataset, train, judge) with the settings of
config/ as they are:

* orders: generated ones (make-data), with config/orders.toml. The last 14 days whose labels are due are the test.
* handbook: the test week of the Fraud Detection Handbook (2018-08-08 to 14), with config/cards.toml: 90 days before a
  gap of seven days, the last 14 of them for calibration and policy; a label is known seven days after its
  transaction. As in the book, transactions of customers who are known to be compromised are left out of the test;
  handbook_eval.py says which. Skipped when the data is not there.

Model, calibration and both thresholds of the policy are settled before the test days begin. Money is in major units a
day; costs are those of the section `policy` of the settings, the same for both; intervals are the middle 95 % of
resamples of whole customers. The last line is one JSON object.
"""

import argparse
import json
import os
import runpy
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import handbook  # noqa: E402

from fraud_poc.core.files import read_json  # noqa: E402
from fraud_poc.core.settings import Settings, load_settings  # noqa: E402
from fraud_poc.data.ingest import ingest  # noqa: E402
from fraud_poc.data.sample import make_data  # noqa: E402
from fraud_poc.features.batch import compute_features  # noqa: E402
from fraud_poc.features.event_aggregates import DAY_MS  # noqa: E402
from fraud_poc.features.table import build_table  # noqa: E402
from fraud_poc.model.acceptance import columns_of, judge_model  # noqa: E402
from fraud_poc.model.bundle import load_bundle  # noqa: E402
from fraud_poc.model.dataset import make_dataset, read_split  # noqa: E402
from fraud_poc.model.policy import probabilities  # noqa: E402
from fraud_poc.model.simulation import COMPARED_RULES, evaluate_policy  # noqa: E402
from fraud_poc.model.train import train_model  # noqa: E402

TEST_WEEK = np.datetime64("2018-08-08")


def judged(settings: Settings) -> tuple[dict, Path]:
    "Dataset, model and acceptance: what the policy cost and saved on the test days, and the model's folder."
    make_dataset(settings)
    train_model(settings)
    found = judge_model(settings)
    return read_json(Path(found["folder"]) / "evaluation.json")["money"], Path(found["folder"])


def of_orders(folder: Path, orders: int, bootstrap: int) -> dict:
    "Money on generated orders."
    settings = load_settings(
        ROOT / "config" / "orders.toml",
        {
            "batch.folder": str(folder / "orders"),
            "input.events": str(folder / "raw" / "orders"),
            "input.labels": str(folder / "raw" / "labels"),
            "sample.orders": orders,
            "acceptance.bootstrap": bootstrap,
        },
    )
    for step in (make_data, ingest, compute_features):
        step(settings)
    return judged(settings)[0]


def of_handbook(folder: Path, shared: Path, bootstrap: int) -> dict:
    "Money on the handbook's test week, without the customers that are known to be compromised."
    source = shared / "data" / "handbook" / "transactions.parquet"
    handbook.prepare(source, folder, TEST_WEEK + 7 * handbook.DAY, 0)
    settings = load_settings(
        ROOT / "config" / "cards.toml", {"batch.folder": str(folder / "cards"), "acceptance.bootstrap": bootstrap}
    )
    _, place = judged(settings)
    bundle, test = load_bundle(place, build_table(settings)), read_split(settings, "test")
    (times, cards, amounts), ids = columns_of(settings, test), test.rows["id"].cast("int64").to_numpy()
    assert np.datetime64(int(times.min()), "ms").astype("datetime64[D]") == TEST_WEEK and bundle.manifest["training"][
        "windows"
    ]["cutoff"] == str(TEST_WEEK)
    raw = pq.read_table(source, columns=["TRANSACTION_ID", "TX_DATETIME", "CUSTOMER_ID", "TX_FRAUD"]).to_pandas()
    allowed = runpy.run_path(str(shared / "tools" / "handbook_eval.py"))["test_set"](raw, TEST_WEEK - 14 * handbook.DAY)
    kept = np.isin(ids, allowed.TRANSACTION_ID.to_numpy())
    assert kept.sum() == len(allowed), (kept.sum(), len(allowed))
    p = probabilities(bundle.calibration, bundle.booster.inplace_predict(test.features[kept]))
    return evaluate_policy(
        settings,
        bundle.policy,
        p,
        amounts[kept],
        test.label[kept],
        times[kept] // DAY_MS,
        cards[kept],
        test.weight[kept],
    )


def tell(name: str, found: dict) -> None:
    "The table of one set of data."
    span = lambda entry: (
        f"{entry['value']:>10,.0f}"
        + ("" if entry["low"] is None else f"  ({entry['low']:,.0f} to {entry['high']:,.0f})")
    )
    print(
        f"\n{name}: {found['days']} days, {found['events']:,} resolved events, {found['frauds']:,} frauds; "
        "money in major units a day, 95 % intervals"
    )
    print(f"a review must save {found['review_over']:.2f}, a block {found['block_over']:.2f}")
    print(f"{'rule':<18}{'cost':<30}{'saved by the policy':<30}")
    for rule, words in COMPARED_RULES.items():
        saved = span(found["savings"][rule]) if rule in found["savings"] else ""
        print(f"{words:<18}{span(found['costs'][rule]):<30}{saved:<30}")
    best, acts = found["best_fixed"], found["actions"]
    print(f"best fixed threshold in hindsight, {best['threshold']:.1%}: {best['cost']:,.0f}")
    print(
        "; ".join(
            f"{action}: {acts[action]['events']:,.0f} events, {acts[action]['frauds']:,.0f} frauds"
            for action in ("pass", "review", "block")
        )
        + f"; alerts beyond the capacity of review: {acts['not_reached']['events']:,.0f}",
        flush=True,
    )


def short(found: dict) -> dict:
    "What goes into the JSON line."
    return {
        "cost_a_day": {rule: round(entry["value"]) for rule, entry in found["costs"].items()},
        "best_fixed": round(found["best_fixed"]["cost"]),
        "saved_a_day": {
            rule: [round(entry[key]) for key in ("value", "low", "high") if entry[key] is not None]
            for rule, entry in found["savings"].items()
        },
        "saved_share_of_passing": round(found["savings"]["pass"]["value"] / found["costs"]["pass"]["value"], 3),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--orders", type=int, default=300_000, help="generated orders (default: %(default)s); 0 = leave them out"
    )
    parser.add_argument(
        "--shared",
        type=Path,
        default=Path(os.environ.get("FRAUD_POC_SHARED") or ROOT.parent / "shared"),
        help="folder with data/handbook and tools (default: %(default)s)",
    )
    parser.add_argument(
        "--bootstrap", type=int, default=200, help="resamples behind the intervals (default: %(default)s)"
    )
    given = parser.parse_args()
    results = {}
    if given.orders:
        with tempfile.TemporaryDirectory() as place:
            results["orders"] = of_orders(Path(place), given.orders, given.bootstrap)
        tell("orders", results["orders"])
    source = given.shared / "data" / "handbook" / "transactions.parquet"
    if source.exists() and (given.shared / "tools" / "handbook_eval.py").exists():
        with tempfile.TemporaryDirectory() as place:
            results["handbook"] = of_handbook(Path(place), given.shared, given.bootstrap)
        tell("handbook", results["handbook"])
    else:
        print(
            f"handbook: skipped, no {source}. Set FRAUD_POC_SHARED or --shared to the folder that holds "
            "data/handbook and tools/handbook_eval.py"
        )
    print(json.dumps({name: short(found) for name, found in results.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
