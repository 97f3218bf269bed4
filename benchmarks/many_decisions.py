"""A database with many generated decisions, to measure the desk on.

    python benchmarks/many_decisions.py FOLDER [--decisions 1000000] [--cases 100000] [--seed 7]

The rows look like those of the writer, in numbers and in size: orders of 90 days that end now, four links each, cases
that are open or were closed with a label, and rollups that add up. Nothing of it was ever scored.
"""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import sqlalchemy as sa

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from fraud_poc.core.database import add_up, checkpoints, open_database, replace_rows, writing  # noqa: E402
from fraud_poc.core.events import system_clock  # noqa: E402
from fraud_poc.core.settings import Settings, load_settings  # noqa: E402
from fraud_poc.desk.tables import cases, days, decisions, labels, links, scores  # noqa: E402
from fraud_poc.features.table import FeatureTable, build_table  # noqa: E402

DAY, DAYS, PIECE = 86_400_000, 90, 50_000
BANDS, ACTIONS = ("low", "medium", "high"), ("pass", "review", "block")


def key_of(text: str) -> int:
    "A number for a text, as it would be stored; not the keyed hash of a domain."
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


def drawn(
    settings: Settings, count: int, open_cases: int, closed: int, now: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    "Numbers of all decisions, sorted by time."
    found = {"time": np.sort(now - (rng.beta(1.0, 1.4, count) * DAYS * DAY).astype(np.int64))}
    found["amount"] = np.maximum(np.round(np.exp(rng.normal(3.8, 0.9, count)) * 100), 100).astype(np.int64)
    found["place"] = np.zeros(count, np.int64)  # in BANDS
    chosen = np.sort(rng.choice(count, open_cases + closed, replace=False))
    found["place"][chosen] = np.where(rng.random(len(chosen)) < 0.25, 2, 1)
    found["open"] = np.zeros(count, bool)
    found["open"][chosen[closed:]] = True  # the newest wait
    low, high = np.array([0.0, 0.05, 0.5])[found["place"]], np.array([0.05, 0.5, 1.0])[found["place"]]
    found["probability"] = low + (high - low) * rng.beta(1.0, 3.0, count)
    found["score"] = np.clip(found["probability"] * rng.uniform(0.8, 1.2, count), 0, 1)
    found["fraud"] = rng.random(count) < found["probability"]
    found["customer"] = (rng.zipf(1.6, count) % 97 * 1000 + rng.integers(0, max(count // 500, 20), count)) % max(
        count // 8, 20
    )
    found["shared"] = rng.integers(0, max(count // 4, 10), (3, count))
    found["took"] = rng.integers(300, 3000, count)
    return found


def rows_of(
    settings: Settings,
    table: FeatureTable,
    numbers: dict[str, np.ndarray],
    start: int,
    stop: int,
    rng: np.random.Generator,
) -> Iterator[tuple[str, list[tuple]]]:
    "Rows of some decisions by table."
    columns, entities = settings.columns, settings.columns.entities
    at = {name: values[..., start:stop].tolist() for name, values in numbers.items()}
    count, scale = stop - start, 10**columns.decimals
    raw = [[f"{entities[0][:1]}{number:07d}" for number in at["customer"]]]
    for e in range(1, len(entities)):
        raw.append(
            [
                f"{entities[e]}-{(c if c % 5 else other):07d}"
                for c, other in zip(at["customer"], at["shared"][(e - 1) % 3])
            ]
        )
    keys, vectors = (
        [list(map(key_of, texts)) for texts in raw],
        np.abs(rng.normal(2.0, 2.0, (count, len(table.names)))).astype(np.float32),
    )
    flags = json.dumps({entity: "known" for entity in entities})
    reasons = json.dumps(
        [
            {
                "feature": name,
                "value": 3.5,
                "contribution": 1.5 - place / 4,
                "words": f"{name.replace('_', ' ')} 3.5, above this customer's own normal",
            }
            for place, name in enumerate(table.names[:5])
        ]
    )
    rows, cased, linked_decisions, labelled = [], [], [], []
    for i in range(count):
        number, when, amount, place, p, customer = (
            start + i + 1,
            at["time"][i],
            at["amount"][i],
            at["place"][i],
            at["probability"][i],
            raw[0][i],
        )
        order = {
            columns.id[0]: f"o{number:08d}",
            columns.time: time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(when // 1000)),
            columns.amount: amount / scale,
        }
        order |= {entity: raw[e][i] for e, entity in enumerate(entities)} | {name: "xx" for name in columns.categories}
        band, action, loss = BANDS[place], ACTIONS[place], round(p * (0.9 * amount + 20 * scale))
        rows.append(
            (
                number,
                "generated",
                number,
                order[columns.id[0]],
                keys[0][i] ^ number,
                when,
                when + 2,
                amount,
                at["score"][i],
                p,
                band,
                action,
                loss,
                customer,
                flags,
                msgspec.json.encode(order).decode(),
                vectors[i].tobytes(),
                "0" * 64,
                "1" * 64,
                table.hash,
                reasons if place else None,
                at["took"][i],
            )
        )
        linked_decisions += [(number, entity, keys[e][i]) for e, entity in enumerate(entities)]
        if not place:
            continue
        waits, fraud = at["open"][i], at["fraud"][i]
        status = "open" if waits else "flagged" if fraud else "cleared"
        cased.append(
            (
                number,
                status,
                when + 2,
                None if waits else when + DAY // 4,
                None if waits else "example",
                "",
                0.95 * loss / scale / 4 - 0.8,
                band,
                action,
                amount,
                customer,
                when,
                "generated",
                -number,
                None if waits else -number,
                None if waits else "analyst",
            )
        )
        if not waits:
            labelled.append(
                (
                    number,
                    "generated",
                    -number,
                    order[columns.id[0]],
                    number,
                    "assert",
                    None,
                    int(fraud),
                    int(fraud),
                    -1,
                    "analyst",
                    when + DAY // 4,
                    when + DAY // 4,
                    "",
                    "person",
                    "example",
                )
            )
    yield from (("decisions", rows), ("links", linked_decisions), ("cases", cased), ("labels", labelled))


def rollups(settings: Settings, numbers: dict[str, np.ndarray]) -> tuple[list[dict], list[dict]]:
    "Rows of days and scores."
    day, fraud, known = numbers["time"] // DAY, numbers["fraud"], (numbers["place"] > 0) & ~numbers["open"]
    by_band, by_score = [], []
    for d in np.unique(day):
        for place in range(3):
            mine = (day == d) & (numbers["place"] == place)
            frauds = mine & fraud & known
            lost = int(numbers["amount"][frauds].sum())
            if mine.any():
                by_band.append(
                    {
                        "day": int(d),
                        "band": BANDS[place],
                        "action": ACTIONS[place],
                        "events": int(mine.sum()),
                        "amount": int(numbers["amount"][mine].sum()),
                        "frauds": int(frauds.sum()),
                        "fraud_amount": lost,
                        "saved": lost - int(0.15 * numbers["amount"][mine & known & ~fraud].sum()),
                    }
                )
        buckets, events = np.unique(np.minimum(numbers["score"][day == d] * 20, 19).astype(int), return_counts=True)
        by_score += [{"day": int(d), "bucket": int(b), "events": int(n)} for b, n in zip(buckets, events)]
    return by_band, by_score


def insert(connection: sa.Connection, name: str, rows: list[tuple]) -> None:
    "Many rows, as fast as the database takes them."
    table = {"decisions": decisions, "links": links, "cases": cases, "labels": labels}[name]
    names = [f'"{column.name}"' for column in table.columns]
    if not rows:
        return
    raw = connection.connection.driver_connection
    if connection.dialect.name == "sqlite":
        raw.executemany(f"INSERT INTO {name} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})", rows)
    else:
        with raw.cursor() as cursor, cursor.copy(f"COPY {name} ({', '.join(names)}) FROM STDIN") as copy:
            for row in rows:
                copy.write_row(row)


def fill(engine: sa.Engine, settings: Settings, decisions: int, cases: int, seed: int = 7, progress=None) -> dict:
    """Fill an empty database with so many decisions, so many open cases and half as many closed ones.

    Returns counts of rows. Indexes are built at the end.
    """
    rng, table, counts = (
        np.random.default_rng(seed),
        build_table(settings),
        {"decisions": 0, "links": 0, "cases": 0, "labels": 0},
    )
    numbers = drawn(settings, decisions, cases, min(cases // 2, max(decisions - cases, 0)), system_clock(), rng)
    with writing(engine) as connection:
        indexes = [index for one in (globals()[name] for name in counts) for index in one.indexes]
        for index in indexes:
            index.drop(connection)
        for start in range(0, decisions, PIECE):
            for name, rows in rows_of(settings, table, numbers, start, min(start + PIECE, decisions), rng):
                insert(connection, name, rows)
                counts[name] += len(rows)
            if progress:
                progress(min(start + PIECE, decisions), decisions)
        for index in indexes:
            index.create(connection)
        for one, rows in zip((days, scores), rollups(settings, numbers)):
            add_up(connection, one, rows)
        replace_rows(connection, checkpoints, [{"name": "decisions", "log": "generated", "position": decisions}])
        for name in ("decisions", "labels"):
            if connection.dialect.name == "postgresql":
                connection.execute(
                    sa.text(
                        f"SELECT setval(pg_get_serial_sequence('{name}', 'id'), greatest(1, "
                        f"(SELECT max(id) FROM {name})))"
                    )
                )
        connection.execute(sa.text("ANALYZE"))
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="for the database, unless FRAUD_POC_DATABASE_URL names one")
    parser.add_argument("--decisions", type=int, default=1_000_000)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=7)
    options, start = parser.parse_args(), time.perf_counter()
    settings = load_settings(ROOT / "config" / "orders.toml", {"batch.folder": str(options.folder)})
    engine = open_database(settings)
    counts = fill(
        engine,
        settings,
        options.decisions,
        options.cases,
        options.seed,
        lambda done, total: print(f"{done:,} of {total:,}", file=sys.stderr),
    )
    engine.dispose()
    print(json.dumps(counts | {"seconds": round(time.perf_counter() - start, 1)}))


if __name__ == "__main__":
    main()
