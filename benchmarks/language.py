"""What do columns of every kind, expressions, functions and conditions cost, beside the table of the shop?

    python benchmarks/language.py [--events 300000] [--decisions 2000] [--repeats 5]

Two domains get the same number of generated events of equally skewed payers: the shop with its table
(`config/orders.toml`), and payments with some forty features of numbers, flags, vocabularies, further times, derived
columns, conditions, pairs and roles. In one process and one thread they take turns; shown are medians.

  batch    events a second of CPU time, from columns in memory to features in memory
  score    CPU time of one decision: reading an event's fields, states from a store in memory, step, model of 300
           trees, commit. HTTP and the way to a real store, which are the same for both, are not part of it

Then 20,000 events of each domain are stepped one by one through packed states, and compared with batch, bit by bit.
The last line is one JSON object: `old_table_ratio` is the batch rate of the payments over that of the shop,
`score_cpu_ratio` the CPU time of a payment's decision over that of an order's.
"""

import argparse
import asyncio
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from fraud_poc.core.events import all_bits_of  # noqa: E402
from fraud_poc.core.reading import EventReader  # noqa: E402
from fraud_poc.core.settings import Settings, load_settings  # noqa: E402
from fraud_poc.features.items import features_of_arrays  # noqa: E402
from fraud_poc.features.table import FeatureTable, Stepper, build_table, step_event  # noqa: E402
from fraud_poc.live.decide import Engine, sample_model  # noqa: E402
from fraud_poc.live.store import MemoryStore, Meta  # noqa: E402

START, DAY, STEPPED = 1_735_689_600_000, 86_400_000, 20_000
PAYMENTS = {
    "domain.name": "payments",
    "columns.entities": ["payer", "payee", "device"],
    "columns.shared": {"account": ["payer", "payee"]},
    "columns.numbers": {"balance": 2, "items": 0},
    "columns.flags": ["gift"],
    "columns.vocabularies": {"type": ["transfer", "payment", "cash_out"]},
    "columns.times": ["opened"],
    "acceptance.card": "payer",
    "service.optional": ["balance", "items", "gift", "type", "opened"],
    "features.derived": {
        "spent": "round(order_amount / balance, 4)",
        "left": "balance - order_amount",
        "age_days": "(order_date - opened) / 86400",
        "night": "hour(order_date) < 6",
        "emptied": "left < 10 and type in ('transfer', 'cash_out')",
        "zeros": "fraud_poc.data.functions:trailing_zeros",
    },
    "features.rows": [
        *('Value(["order_amount", "balance", "items", "gift", "spent", "left", "age_days", "emptied", "zeros"])',),
        *('Is("type", ["transfer", "cash_out"])', 'Code("type")', "Hour()"),
        'Count(by=["payer", "payee", "device"], over=["1h", "1d", "30d"])',
        'Count(by="payer+payee", over="30d")',
        'Count(by="payer", role="payee", over=["1d", "30d"])',
        'Sum("order_amount", by="payee", role="payer", over="1d")',
        'Mean("spent", by="payer", over=["7d", "30d"])',
        'ZScore("spent", by="payer", last=20)',
        'Median("order_amount", by="payer", last=20)',
        'Max("zeros", by="payer", over="7d")',
        'Mean("balance", by="payer", over="30d")',
        'Sum("order_amount", by="payer", over=["1d", "30d"], where="type == \'transfer\'")',
        'Count(by="payee", over=["1d", "30d"], where="emptied")',
        'Count(by="payer", over=["1d", "30d"], where="night and not gift")',
        'Distinct("payee", by="payer", over=["1d", "lifetime"])',
        'Lag("order_amount", by="payer+payee", n=1)',
        'SameAsLast(["type", "device"], by="payer")',
        'TimeSince(by=["payer", "payee"])',
    ],
}


def settings_of(name: str) -> Settings:
    return load_settings(ROOT / "config" / "orders.toml", PAYMENTS if name == "payments" else {})


# --- data -------------------------------------------------------------------------------------------------------------


def generated(settings: Settings, count: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    "Values of events by column (times ms, numbers in their smallest unit), and where measured columns are missing."
    draw = np.random.default_rng(7)
    skewed = lambda: (draw.pareto(1.1, count) * 40).astype(np.int64) % (count // 8 + 1)
    columns = settings.columns
    values = {columns.time: START + np.sort(draw.integers(0, 120 * DAY, count))}
    values[columns.amount] = (draw.lognormal(3.5, 1.2, count) * 100).astype(np.int64) + 1
    values |= {name: skewed() for name in columns.entities} | {name: skewed() % 300 for name in columns.categories}
    values |= {name: draw.integers(0, 500_000, count) for name in columns.numbers}
    values |= {name: draw.integers(0, 2, count) for name in columns.flags}
    values |= {name: draw.integers(0, len(words), count) for name, words in columns.vocabularies.items()}
    values |= {name: values[columns.time] - draw.integers(0, 900 * DAY, count) for name in columns.times}
    return values, {name: draw.random(count) < 0.05 for name in columns.measured}


def as_columns(settings: Settings, values: dict, missing: dict) -> dict[str, np.ndarray]:
    "What batch folds: keys, and the bits of measured columns."
    columns = settings.columns
    keys = {name: (values[name].astype(np.uint64) + 1) * np.uint64(0x9E3779B97F4A7C15) for name in columns.hashed}
    measured = {name: all_bits_of(values[name], missing[name]) for name in columns.measured}
    return {"time": values[columns.time], "amount": values[columns.amount]} | keys | measured


def as_fields(settings: Settings, values: dict, missing: dict, index: int) -> dict:
    "What a service is sent."
    columns = settings.columns
    moment = lambda ms: f"{np.datetime64(int(ms), 'ms')}Z"
    fields = {"order_id": f"o{index}", columns.time: moment(values[columns.time][index])}
    fields[columns.amount] = int(values[columns.amount][index]) / 100
    fields |= {name: f"{name}{values[name][index]}" for name in columns.hashed}
    fields |= {name: int(values[name][index]) / 10**decimals for name, decimals in columns.numbers.items()}
    fields |= {name: bool(values[name][index]) for name in columns.flags}
    fields |= {name: words[values[name][index]] for name, words in columns.vocabularies.items()}
    fields |= {name: moment(values[name][index]) for name in columns.times}
    return fields | {name: None for name, gaps in missing.items() if gaps[index]}


# --- what is measured -------------------------------------------------------------------------------------------------


def cpu_of(call) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


class Decider:
    "A domain's service without HTTP, and its events in order."

    def __init__(self, settings: Settings, sent: list[dict]):
        model, later = sample_model(settings, trees=300), lambda: START + 400 * DAY
        self.reader, self.sent = EventReader(settings, b"k" * 32, later), iter(sent)
        self.engine = Engine(settings, model, MemoryStore(Meta("e", 1, model.table.hash, {"next_seq": 0})), clock=later)

    def decide(self, count: int) -> None:
        async def decided() -> None:
            for _ in range(count):
                answer = await self.engine.decide(self.reader.read_dict(next(self.sent)))
                assert answer.degraded is None, answer

        asyncio.run(decided())


def stepped(table: FeatureTable, columns: dict[str, np.ndarray]) -> np.ndarray:
    "Features of events one by one, through packed states."
    stepper, states, vectors = Stepper(table), {}, []
    names = [name for name in columns if name not in ("time", "amount")]
    for row in zip(columns["time"].tolist(), columns["amount"].tolist(), *(columns[n].tolist() for n in names)):
        keys = dict(zip(names, row[2:]))
        every = table.with_pairs(keys)
        places = [(table.entities[e].by, every[reader.by]) for e, reader in table.readers]
        before = [states.get(place, b"") for place in places]
        vector, _, after = step_event(stepper, row[0], len(vectors), row[1], keys, before)
        states |= {place: state for place, state in zip(places, after[: len(table.entities)]) if state}
        vectors.append(vector)
    return np.stack(vectors)


def differing(one: np.ndarray, other: np.ndarray) -> int:
    "Values whose bits differ; NaN is NaN."
    same = (one.view(np.int32) == other.view(np.int32)) | (np.isnan(one) & np.isnan(other))
    return int((~same).sum())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=300_000)
    parser.add_argument("--decisions", type=int, default=2_000)
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    tables, columns, deciders, different = {}, {}, {}, 0
    for name in ("shop", "payments"):
        settings = settings_of(name)
        values, missing = generated(settings, asked.events)
        tables[name], columns[name] = build_table(settings), as_columns(settings, values, missing)
        decided = min(asked.events, asked.decisions * (asked.repeats + 1))
        sent = [as_fields(settings, values, missing, index) for index in range(decided)]
        deciders[name] = Decider(settings, sent)
        few = {name: column[:STEPPED] for name, column in columns[name].items()}
        found = features_of_arrays(tables[name], columns[name], np.float32)[: len(few["time"])]
        different += differing(np.ascontiguousarray(found), stepped(tables[name], few))
        deciders[name].decide(asked.decisions)
    batch, score = {name: [] for name in tables}, {name: [] for name in tables}
    for _ in range(asked.repeats):
        for name, table in tables.items():
            batch[name].append(asked.events / cpu_of(lambda: features_of_arrays(table, columns[name], np.float32)))
            score[name].append(cpu_of(lambda: deciders[name].decide(asked.decisions)) / asked.decisions * 1e6)
    print(f"{'':10}{'features':>9}{'states':>8}{'events/s of CPU':>17}{'us of CPU a decision':>22}")
    for name, table in tables.items():
        rate, cost = statistics.median(batch[name]), statistics.median(score[name])
        print(f"{name:10}{len(table.rows):9}{len(table.entities):8}{rate:17,.0f}{cost:22,.0f}")
    ratio = lambda of: round(statistics.median(of["payments"]) / statistics.median(of["shop"]), 3)
    result = {"old_table_ratio": ratio(batch), "score_cpu_ratio": ratio(score), "differing_values": different}
    print(json.dumps(result))
    return 1 if different else 0


if __name__ == "__main__":
    raise SystemExit(main())
