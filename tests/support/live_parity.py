"""Events that are decided live, against a batch fold over the log that they leave."""

import asyncio

import numpy as np
from test_decide import SECRET, engine_for
from test_store import any_store

from fraud_poc.core.reading import EventReader
from fraud_poc.core.settings import Settings
from fraud_poc.features.table import build_table
from fraud_poc.live.labels import LabelAssertion, LabelWriter
from fraud_poc.live.store import Meta
from fraud_poc.ops.replay import Replayed, compare, differing_states, fold_log, served_entries
from support.waiting import in_time

HOUR = 3_600_000


def features_of(settings: Settings, events: list[dict], now: int) -> list[dict]:
    "Features of events that are decided one after the other in a store in memory."
    engine, reader = engine_for(settings), EventReader(settings, SECRET, lambda: now)

    async def decided() -> list[dict]:
        return [(await engine.decide(reader.read_dict(one))).features for one in events]

    return asyncio.run(decided())


def live_against_batch(settings: Settings, sent: list[dict], kind: str, server, now: int) -> tuple[dict, int, Replayed]:
    "Decide events in eights, with a label for the first of each: what differs, how many states, and the batch fold."
    table = build_table(settings)

    async def story() -> tuple[dict, int, Replayed]:
        async with any_store(kind, server, Meta("e", 1, table.hash, {"next_seq": 0})) as store:
            engine, reader = engine_for(settings, store), EventReader(settings, SECRET, lambda: now)
            writer, events = LabelWriter(engine, SECRET), [reader.read_dict(one) for one in sent]
            for start in range(0, len(events), 8):
                answers = {}
                await engine.decide_all(events[start : start + 8], answers.__setitem__)
                assert all(answer.degraded is None for answer in answers.values())
                one = events[start]
                change = LabelAssertion(one.id, start % 3 == 0, "chargeback", one.time + HOUR, time=one.time)
                await writer.assert_label(change, now=now)
            entries = await served_entries(store, -1)
            replayed = fold_log(table, settings.columns, entries, {})
            scores = np.array([engine.model.scorer.score(vector) for vector in replayed.vectors], np.float32)
            _, different = await differing_states(store, table, replayed)
            return compare(entries, replayed, scores), different, replayed

    return asyncio.run(in_time(story()))
