"""Does a history that comes in portions, by files and live, give the features that it gives in one piece?

    python benchmarks/portions.py                       # generated orders, labels in files of their own
    python benchmarks/portions.py --config config/cards.toml --input transactions.parquet
                                                        # labels with their events, known after labels.delay
        [--cuts 5] [--rounds 3] [--live 20000] [--orders 60000] [--seed 7]

The history is ingested in one piece, and its features computed. Then, so many rounds: it is cut at moments that are
drawn, and each portion is ingested and its features computed, one after the other. A label comes with the portion of
its event, whenever it is known. In the last round the newest events do not come in a file: they are accepted one by
one by the live path over a store that was filled from the portions before, labels that waited enter when their time
has come, and the live log is collected.

Compared with the one piece are the order of events and labels in the log, the labels that wait, each float32 value,
the states, and, in rounds of files, the rows of the training set where there can be one. The last line is one JSON
object; the exit code is 1 when anything differs.
"""

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support import oracle  # noqa: E402

from fraud_poc.core.reading import Event  # noqa: E402
from fraud_poc.core.settings import Settings, load_settings  # noqa: E402
from fraud_poc.data.ingest import ingest  # noqa: E402
from fraud_poc.data.log import hash_secret, read_manifest, read_part, read_waiting  # noqa: E402
from fraud_poc.data.sample import make_data  # noqa: E402
from fraud_poc.features.batch import compute_features  # noqa: E402
from fraud_poc.features.table import build_table, step_event  # noqa: E402
from fraud_poc.live.collect import collect  # noqa: E402
from fraud_poc.live.decide import Engine, entity_keys, states_of_all  # noqa: E402
from fraud_poc.live.labels import LabelAssertion, LabelWriter, assert_due  # noqa: E402
from fraud_poc.live.load import prepare_db  # noqa: E402
from fraud_poc.live.redis_server import start_redis  # noqa: E402
from fraud_poc.live.redis_store import open_store  # noqa: E402
from fraud_poc.live.store import Entry, Write, encode_entry, event_key  # noqa: E402
from fraud_poc.model.dataset import make_dataset, read_split  # noqa: E402

DAY = 86_400_000


def in_folder(settings: Settings, folder: Path, secret: Path) -> Settings:
    "The settings with an empty folder that has the keys of another one."
    folder.mkdir(parents=True)
    shutil.copy(secret, folder / "hash_secret")
    return settings.model_copy(update={"batch": settings.batch.model_copy(update={"folder": folder})})


def log_of(settings: Settings) -> pd.DataFrame:
    "The log as rows in its order: kind, id, label and what was known before it."
    tables = []
    for part in read_manifest(settings.batch.folder)["parts"]:
        for kind, columns in (("events", ["seq", "id"]), ("labels", ["seq", "id", "label", "previous"])):
            tables.append(read_part(settings.batch.folder, kind, part["name"], columns).to_pandas().assign(kind=kind))
    return pd.concat(tables).sort_values("seq").drop(columns="seq").fillna(-9).reset_index(drop=True)


def differences(one: Settings, other: Settings, live_from: int | None) -> dict[str, int]:
    """What differs between the history in one piece and in portions.

    Labels of live events that are known later than the newest one have reached no store: they count on neither
    side.
    """
    logs, (vectors, others) = [log_of(s) for s in (one, other)], [oracle.of_batch(s) for s in (one, other)]
    found = {
        "log_rows": int((logs[0].to_numpy() != logs[1].to_numpy()).any(1).sum())
        if len(logs[0]) == len(logs[1])
        else max(map(len, logs))
    }
    tables = [read_waiting(s.batch.folder, read_manifest(s.batch.folder)).to_pandas() for s in (one, other)]
    waiting = [
        set(
            map(
                tuple,
                table[table["time"] < (2**62 if live_from is None else live_from)][["id", "known", "label"]].to_numpy(),
            )
        )
        for table in tables
    ]
    found["waiting_labels"] = len(waiting[0] ^ waiting[1])
    found["values"] = (
        len(oracle.differing(vectors[0], others[0])) if vectors[0].shape == others[0].shape else vectors[0].size
    )
    found["states"] = sum(vectors[2].get(key) != others[2].get(key) for key in vectors[2].keys() | others[2].keys())
    return found | ({"training_rows": training_difference(one, other)} if live_from is None else {})


def training_difference(one: Settings, other: Settings) -> int:
    "Rows of the training set that differ; 0 where the history is too short for one."
    try:
        make_dataset(one)
    except ValueError as error:
        print(f"no training set: {error}")
        return 0
    make_dataset(other)
    names, count = ["label", "weight", *build_table(one).names], 0
    for split in ("train", "validation", "test"):
        tables = [read_split(s, split) for s in (one, other)]
        rows = [
            pd.DataFrame(
                np.column_stack([t.label, t.weight, t.features]).astype(np.float32), t.rows["id"].to_pylist(), names
            ).sort_index()
            for t in tables
        ]
        if not rows[0].index.equals(rows[1].index):
            count += max(map(len, rows))
        else:
            count += int((rows[0].to_numpy().view(np.uint32) != rows[1].to_numpy().view(np.uint32)).any(1).sum())
    return count


async def accept(learner: Engine, event: Event) -> None:
    "Step an event and commit it, as deciding does, with no model."
    there, keys = entity_keys(learner.table, event.keys)
    found = await learner.store.read(event_key(event.id_key), keys)
    whole = states_of_all(len(learner.table.readers), there, found.states)
    after = step_event(learner.stepper, event.time, event.id_key & 0xFFFFFFFF, event.amount, event.keys, whole)[2]
    entry = Entry("event", event.time, event.id_key, tuple(event.keys.values()), amount=event.amount, body=event.body)
    outcome = await learner.store.write(
        Write(event_key(event.id_key), b"", keys, found.versions, [after[e] for e in there], encode_entry(entry))
    )
    if outcome.kind != "accepted":
        raise RuntimeError(f"event {event.id}: {outcome.kind}")


def moves(settings: Settings, whole: Settings, start: int) -> Iterator[tuple[str, int, Event | dict]]:
    """Events of the log in one piece from a moment on, and labels of these events: kind, UTC ms, item.

    They come in the order in which they are known.
    """
    columns, mine = settings.columns, set()
    for part in read_manifest(whole.batch.folder)["parts"]:
        items = [("event", row) for row in read_part(whole.batch.folder, "events", part["name"]).to_pylist()]
        items += [("label", row) for row in read_part(whole.batch.folder, "labels", part["name"]).to_pylist()]
        for kind, row in sorted(items, key=lambda item: item[1]["seq"]):
            time_ms = round(row["time"].timestamp() * 1000)
            if kind == "label" and row["id_key"] in mine:
                yield "label", round(row["known"].timestamp() * 1000), row
            if kind == "label" or time_ms < start:
                continue
            mine.add(row["id_key"])
            keys = {name: row[f"{name}_key"] for name in columns.hashed}
            body = {
                columns.time: row["time"].isoformat(),
                columns.amount: row[columns.amount] / 10**columns.decimals,
                **{name: row[name] for name in columns.hashed},
            }
            ids = dict(zip(columns.id, [row["id"]] if len(columns.id) == 1 else row["id"].split(":")))
            yield (
                "event",
                time_ms,
                Event(row["id"], row["id_key"], time_ms, row[columns.amount], keys, json.dumps(body | ids).encode()),
            )


async def live(settings: Settings, whole: Settings, url: str, start: int) -> int:
    "Send the newest events through the live path, with labels at their time; how many."
    secret, count = hash_secret(settings.batch.folder), 0
    async with open_store(settings, url) as store:
        learner = Engine(settings, None, store)
        for kind, now, item in moves(settings, whole, start):
            await assert_due(LabelWriter(learner, secret), now)
            if kind == "event":
                await accept(learner, item)
            else:
                await LabelWriter(learner, secret).assert_label(
                    LabelAssertion(item["id"], bool(item["label"]), settings.labels.source, now),
                    now,
                )
            count += kind == "event"
    return count


def portion_files(
    frame: pd.DataFrame, labels: pd.DataFrame | None, chosen: np.ndarray, settings: Settings, folder: Path
) -> tuple[str, str]:
    "Files of the chosen events, and of their labels."
    part = frame[chosen]
    part.to_parquet(folder / "events.parquet", index=False)
    if labels is None:
        return str(folder / "events.parquet"), ""
    labels[labels[settings.columns.id[0]].isin(part[settings.columns.id[0]])].to_parquet(
        folder / "labels.parquet", index=False
    )
    return str(folder / "events.parquet"), str(folder / "labels.parquet")


def one_round(
    settings: Settings,
    whole: Settings,
    frame: pd.DataFrame,
    labels: pd.DataFrame | None,
    cuts: list[int],
    folder: Path,
    live_from: int | None,
) -> dict:
    "The history in portions, the newest live where that is asked for; what differs."
    here = in_folder(settings, folder / "portions", whole.batch.folder / "hash_secret")
    times = frame["@ms"].to_numpy()
    for low, high in zip([-(2**62), *cuts], [*cuts, 2**62]):
        chosen = (times >= low) & (times < min(high, live_from if live_from is not None else 2**62))
        if not chosen.any():
            continue
        ingest(here, *portion_files(frame.drop(columns="@ms"), labels, chosen, here, folder))
        compute_features(here)
    if live_from is not None:
        patient = here.model_copy(update={"live": here.live.model_copy(update={"store_timeout": "60s"})})
        with start_redis(folder / "redis") as server:
            prepare_db(patient, server.url)
            print(f"{asyncio.run(live(patient, whole, server.url, live_from)):,} events live", flush=True)
            collect(patient, server.url)
        compute_features(here)
    return differences(whole, here, live_from)


def read_input(settings: Settings, place: str | None, folder: Path) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    "Raw events with their time in `@ms`, and their labels where they come apart."
    if place:
        frame, labels = pq.read_table(place).to_pandas(), None
    else:
        make_data(settings, folder / "raw")
        frame, labels = (
            pd.concat([pd.read_parquet(path) for path in sorted((folder / "raw" / kind).glob("*.parquet"))])
            for kind in ("orders", "labels")
        )
    stamps = frame[settings.columns.time]
    unit = {"iso": None, "epoch_s": "s", "epoch_ms": "ms"}[settings.columns.time_format]
    moments = pd.to_datetime(stamps, unit=unit, utc=True)
    return frame.assign(**{"@ms": moments.astype("datetime64[ms, UTC]").astype("int64")}).reset_index(drop=True), labels


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default=str(ROOT / "config" / "orders.toml"))
    parser.add_argument(
        "--input", help="raw events, a Parquet file whose events carry their labels; without it, data is generated"
    )
    for name, default in (("cuts", 5), ("rounds", 3), ("live", 20_000), ("orders", 60_000), ("seed", 7)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given, start, total = parser.parse_args(), time.perf_counter(), {}
    with tempfile.TemporaryDirectory() as home:
        home = Path(home)
        settings = load_settings(
            given.config,
            {"batch.folder": str(home / "whole"), "database.url": ""}
            | (
                {}
                if given.input
                else {
                    "sample.orders": given.orders,
                    "sample.customers": max(1, given.orders * 2 // 15),
                    "input.labels": "given each time",
                }
            ),
        )
        frame, labels = read_input(settings, given.input, home)
        ingest(settings, *portion_files(frame.drop(columns="@ms"), labels, np.ones(len(frame), bool), settings, home))
        compute_features(settings)
        rng, times = np.random.default_rng(given.seed), np.sort(frame["@ms"].to_numpy())
        for number in range(given.rounds):
            cuts = sorted(int(times[place]) for place in rng.integers(1, len(times), given.cuts))
            live_from = (
                int(times[-min(given.live, len(times) // 2)]) if number == given.rounds - 1 and given.live else None
            )
            (home / str(number)).mkdir()
            found = one_round(settings, settings, frame, labels, cuts, home / str(number), live_from)
            until = ", ".join(str(np.datetime64(cut, "ms"))[:16] for cut in cuts)
            live = ", then live" if live_from is not None else ""
            print(f"round {number + 1}, cut before {until}{live}: {found}", flush=True)
            for name, count in found.items():
                total[name] = total.get(name, 0) + count
            shutil.rmtree(home / str(number))
    summary = {
        "domain": settings.domain.name,
        "events": len(frame),
        "cuts": given.cuts * given.rounds,
        "differing_values": total.pop("values"),
        **{f"differing_{name}": count for name, count in total.items()},
        "seconds": round(time.perf_counter() - start, 1),
    }
    print(json.dumps(summary))
    return int(any(count for name, count in summary.items() if name.startswith("differing")))


if __name__ == "__main__":
    sys.exit(main())
