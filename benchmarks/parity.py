"""Are batch, live stepping and the naive oracle equal to the bit on a whole data set?

    python benchmarks/parity.py                                                  # generated orders
    python benchmarks/parity.py --config config/ratings.toml --input ratings.parquet

The input is ingested to a temporary folder. Its features are computed in 1, 2 and 7 pieces on Dask, event by event
through packed bytes, and by the naive oracle of the tests, which recomputes each feature from all that an entity ever
did: that takes minutes. Compared are the bits of each float32 value, the flags, and the packed states. The last line
is one JSON object; the exit code is 1 when anything differs.
"""

import argparse
import json
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support import oracle  # noqa: E402

from fraud_poc.core.sections import ColumnsSection  # noqa: E402
from fraud_poc.core.settings import Settings, load_settings  # noqa: E402
from fraud_poc.data.ingest import ingest  # noqa: E402
from fraud_poc.data.sample import make_data  # noqa: E402
from fraud_poc.features.batch import compute_features  # noqa: E402
from fraud_poc.features.table import Reader, build_table  # noqa: E402

SLICES = 8  # of an entity's keys, each worked out by the oracle on its own


@cache
def stream(folder: Path, columns: str) -> list[dict]:
    return oracle.log_items(folder, ColumnsSection.model_validate_json(columns))


def items_of(settings: Settings) -> list[dict]:
    return stream(settings.batch.folder, settings.columns.model_dump_json())


def readers_of(settings: Settings, by: str) -> list[Reader]:
    "Who reads a history, in the order of the oracle's flags."
    table = build_table(settings)
    return [reader for e, reader in table.readers if table.entities[e].by == by]


def naive_slice(settings: Settings, by: str, number: int) -> list[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    "The oracle on a slice of one history's keys: for each reader, its name, numbers of the events, vectors, flags."
    items, table = items_of(settings), build_table(settings)
    in_slice = lambda columns, item: (place := oracle.place_of(columns, item["keys"])) and sum(place) % SLICES == number
    readers = readers_of(settings, by)
    mine = [item for item in items if any(in_slice(reader.by, item) for reader in readers) or not by and "t" in item]
    number_of = {id(item): place for place, item in enumerate(item for item in items if "t" in item)}
    vectors, flags = oracle.naive_of_history(settings, by, mine)
    events = [item for item in mine if "t" in item]
    numbers = np.array([number_of[id(item)] for item in events], np.int64)
    if not by:
        return [("", numbers, vectors, flags)]
    rows, found = [row for row in table.rows if row.history == by], []
    for r, reader in enumerate(readers):
        there = np.array([bool(in_slice(reader.by, item)) for item in events], bool)
        its_own = [i for i, row in enumerate(rows) if row.reader == reader.name]
        found.append((reader.name, numbers[there], vectors[there][:, its_own], flags[there, r]))
    return found


def naive_whole(settings: Settings, events: int, workers: int) -> tuple[np.ndarray, np.ndarray]:
    "The oracle on all of a log, slice by slice in several processes."
    table = build_table(settings)
    names = [reader.name for _, reader in table.readers]
    vectors, flags = (
        np.full((events, len(table.rows)), np.nan, np.float32),
        np.full((events, len(names)), 16, np.uint8),
    )
    places = {reader.name: reader.places for _, reader in table.readers}
    places[""] = [i for i, row in enumerate(table.rows) if not row.by]
    histories = [entity.by for entity in table.entities]
    tasks = [(by, number) for by in histories for number in range(SLICES)] + [("", 0)] * bool(len(places[""]))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for done, result in enumerate([pool.submit(naive_slice, settings, *task) for task in tasks], 1):
            for name, rows, found, marks in result.result():
                vectors[np.ix_(rows, places[name])] = found
                if name:
                    flags[rows, names.index(name)] = marks
            say(f"oracle: slice {done} of {len(tasks)}")
    return vectors, flags


def say(text: str) -> None:
    print(f"\r{text:<60}", end="", file=sys.stderr, flush=True)


def compare(way: str, seconds: float, got: tuple, expected: tuple) -> dict:
    "One line of the table."
    bits = [np.ascontiguousarray(values[0], np.float32).view(np.uint32) for values in (got, expected)]
    states = (
        sum(got[2].get(place) != expected[2].get(place) for place in got[2].keys() | expected[2].keys())
        if len(got) > 2
        else None
    )
    return {
        "way": way,
        "seconds": seconds,
        "values": int((bits[0] != bits[1]).sum()),
        "bits": int(np.bitwise_count(bits[0] ^ bits[1]).sum()),
        "flags": int((got[1] != expected[1]).sum()),
        "states": states,
    }


def run(settings: Settings, workers: int) -> tuple[list[dict], dict]:
    "All ways on one log: lines of the table, and totals."
    table, items = build_table(settings), items_of(settings)
    start = time.perf_counter()
    live = oracle.stepped(table, items, lambda done: say(f"event by event: {done:,} of {len(items):,}"))
    lines = [{"way": "event by event through bytes", "seconds": time.perf_counter() - start}]
    for pieces in (1, 2, 7):
        start = time.perf_counter()
        compute_features(
            settings.model_copy(update={"batch": settings.batch.model_copy(update={"partitions": pieces})}),
            replace=True,
        )
        seconds = time.perf_counter() - start
        lines.append(compare(f"batch in {pieces} piece{'s' * (pieces > 1)}", seconds, oracle.of_batch(settings), live))
    start = time.perf_counter()
    naive = naive_whole(settings, len(live[0]), workers)
    lines.append(compare("naive oracle", time.perf_counter() - start, naive, live))
    missing = float(np.isnan(live[0]).mean())
    flags = {
        word: int((live[1] & bit > 0).any(1).sum())
        for word, bit in [("new", 1), ("capped", 2), ("late", 4), ("too_late", 8), ("no_entity", 16)]
    }
    return lines, {
        "events": len(live[0]),
        "labels": len(items) - len(live[0]),
        "features": len(table.rows),
        "values": live[0].size,
        "states": len(live[2]),
        "missing": round(missing, 4),
        **flags,
        "differing_bits": sum(line.get("bits", 0) for line in lines),
        "differing_flags": sum(line.get("flags", 0) for line in lines),
        "differing_states": sum(line.get("states") or 0 for line in lines),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--config", default=str(ROOT / "config" / "orders.toml"), help="domain (default: config/orders.toml)"
    )
    parser.add_argument("--input", help="raw events; without it, data is generated")
    parser.add_argument("--orders", type=int, default=20_000, help="orders to generate (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="processes for the oracle (default: %(default)s)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        changes = {
            "batch.folder": folder,
            "batch.step_rows": 10_000,
            "batch.part_rows": 7_000,
        }  # so that states are saved and found again
        if given.input:
            settings = load_settings(given.config, changes)
        else:
            settings = load_settings(
                given.config,
                changes
                | {
                    "sample.orders": given.orders,
                    "sample.customers": max(1, given.orders * 2 // 15),
                    "input.events": f"{folder}/raw/orders",
                    "input.labels": f"{folder}/raw/labels",
                },
            )
            make_data(settings)
        ingest(settings, given.input)
        lines, totals = run(settings, given.workers)
    say("")
    print(
        f"\r{settings.domain.name}: {totals['events']:,} events, {totals['labels']:,} labels, "
        f"{totals['features']} features, {totals['states']:,} states\n"
    )
    print(
        f"{'compared with event by event':<30} {'seconds':>8} {'values that differ':>19} {'bits':>5} {'flags':>6} "
        f"{'states':>7}"
    )
    for line in lines:
        rest = (
            f"{line['values']:>19} {line['bits']:>5} {line['flags']:>6} "
            f"{'-' if line['states'] is None else line['states']:>7}"
            if "bits" in line
            else ""
        )
        print(f"{line['way']:<30} {line['seconds']:>8.1f} {rest}")
    print(json.dumps({"domain": settings.domain.name, **totals}))
    return int(any(totals[f"differing_{what}"] for what in ("bits", "flags", "states")))


if __name__ == "__main__":
    sys.exit(main())
