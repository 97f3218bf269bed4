"""Orders of a drill's domain that are decided without a service, and moments between them."""

import asyncio
from datetime import UTC, datetime

from fraud_poc.core.events import system_clock
from fraud_poc.core.reading import EventReader
from fraud_poc.data.log import hash_secret
from fraud_poc.live.decide import default_engine
from fraud_poc.live.redis_server import server_for
from fraud_poc.live.redis_store import open_store
from support.waiting import until


def score_some(domain, count: int, start: int = 0) -> None:
    "Decide the orders `start` to `count` after the history."

    async def scored(url: str) -> None:
        reader = EventReader(domain.settings, hash_secret(domain.settings.batch.folder))
        async with open_store(domain.settings, url) as store:
            engine = default_engine(domain.settings)
            engine.store = store
            for _, order in domain.orders(count)[start:]:
                assert (await engine.decide(reader.read_dict(order))).degraded is None

    with server_for(domain.settings) as url:
        asyncio.run(scored(url))


def moment_between() -> str:
    "A moment, ISO, after all that was done and before all that follows."
    moment = datetime.fromtimestamp((start := system_clock()) / 1000, UTC).isoformat(timespec="milliseconds")
    until(lambda: system_clock() > start, "the clock goes on")
    return moment
