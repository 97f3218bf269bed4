"""A golden record: what a fixed stream becomes in batch and live, as hashes that a rebuilding of the code must keep.

`python tests/test_golden.py` writes the record anew, for a change of a format or of a rule that is wanted; the reason
stands in the commit.
"""

import asyncio
import hashlib
import json
import sys
import tempfile
from pathlib import Path

import httpx
import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

from support.scoring_worker import small_engine  # noqa: E402

from fraud_poc.core.database import open_database  # noqa: E402
from fraud_poc.core.settings import load_settings  # noqa: E402
from fraud_poc.data.ingest import ingest  # noqa: E402
from fraud_poc.data.log import read_manifest, read_part  # noqa: E402
from fraud_poc.data.sample import make_data  # noqa: E402
from fraud_poc.features.batch import compute_features  # noqa: E402
from fraud_poc.features.state_files import features_folder, read_states  # noqa: E402
from fraud_poc.features.table import build_table  # noqa: E402
from fraud_poc.live.store import decode_entry  # noqa: E402
from fraud_poc.model.dataset import make_dataset  # noqa: E402
from fraud_poc.service.http import create_app  # noqa: E402
from fraud_poc.service.keys import SCOPES, new_key  # noqa: E402
from fraud_poc.service.scoring import KEY_HEADER  # noqa: E402

ROOT, RECORD = Path(__file__).resolve().parents[1], Path(__file__).with_name("golden.json")
NOW, DAY = 1_762_338_600_000, 86_400_000  # 2025-11-05T10:30Z
SMALL = {
    "sample.orders": 4_000,
    "sample.customers": 300,
    "sample.start": "2025-06-01",
    "sample.days": 120,
    "batch.part_rows": 1_500,
    "batch.threads": 1,
    "database.url": "",
    "training.delay": "10d",
    "training.train_days": 60,
    "training.validation_days": 15,
    "training.test_days": 20,
    "live.redis_url": "",
}


class Hash:
    "A hash of values, one after the other."

    def __init__(self):
        self.sha = hashlib.sha256()

    def add(self, *values) -> "Hash":
        for value in values:
            self.sha.update(
                value if isinstance(value, bytes) else json.dumps(value, sort_keys=True, default=str).encode()
            )
        return self

    def __str__(self) -> str:
        return self.sha.hexdigest()[:24]


def rows(table: pa.Table) -> list:
    return [table.column_names, *[column.to_pylist() for column in table.columns]]


def batch(folder: Path) -> tuple[dict[str, str], list[dict]]:
    "Log, features, states and training set of generated orders; and some of the orders as they were."
    settings = load_settings(ROOT / "config" / "orders.toml", SMALL | {"batch.folder": str(folder)})
    folder.mkdir()
    (folder / "hash_secret").write_text("07" * 32)
    make_data(settings, folder / "raw", workers=1)
    ingest(settings, str(folder / "raw" / "orders"), str(folder / "raw" / "labels"))
    compute_features(settings)
    made, table, found = make_dataset(settings), build_table(settings), {}
    parts = [part["name"] for part in read_manifest(folder)["parts"]]
    for kind in ("events", "labels"):
        found[f"log, {kind}"] = Hash().add(*[rows(read_part(folder, kind, part)) for part in parts])
    features = [pq.read_table(features_folder(settings, table) / "parts" / f"{part}.parquet") for part in parts]
    for name in table.names:
        found.setdefault("features", Hash()).add(
            name, *[part[name].to_numpy().astype(np.float32).tobytes() for part in features]
        )
    for entity in table.entities:
        found[f"states of {entity.by}"] = Hash().add(
            *[
                value
                for part in read_states(settings, table, entity.by)
                for value in (part["key"].to_pylist(), *part["state"].to_pylist())
            ]
        )
    files = [folder / "dataset" / split / file["name"] for split in made["files"] for file in made["files"][split]]
    found["training set"] = Hash().add(*[rows(pq.read_table(path)) for path in files])
    raw = [row for path in sorted((folder / "raw" / "orders").iterdir()) for row in pq.read_table(path).to_pylist()]
    return {name: str(one) for name, one in found.items()}, [
        row | {"order_date": row["order_date"].isoformat()} for row in raw[-300:]
    ]


WRONG = [
    "{",
    "[]",
    '{"order_id": "x1"}',
    '{"order_id": "x1", "order_id": "x2"}',
    '{"order": "nobody", "fraud": true, "source": "analyst"}',
    '{"order": "x", "retracts": 3}',
]


async def live(folder: Path, orders: list[dict]) -> dict[str, str]:
    """What the service answers to orders, assertions, retractions and invalid requests.

    And the log and the states that come of it.
    """
    settings = load_settings(
        ROOT / "config" / "orders.toml",
        {"batch.folder": str(folder), "database.url": "", "live.store_timeout": "60s", "live.future_skew": "60d"},
    )
    engine, database, found = (
        small_engine(settings, clock=lambda: NOW),
        open_database(settings),
        {name: Hash() for name in ("answers", "labels", "errors", "document")},
    )
    headers = {KEY_HEADER: new_key(database, "bank", SCOPES, "tests"), "content-type": "application/json"}
    app = create_app(settings, engine, secret=bytes([7] * 32), database=database)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://service", headers=headers
    ) as client:

        async def post(path: str, value) -> httpx.Response:
            return await client.post(path, content=value if isinstance(value, str) else json.dumps(value))

        for start in range(0, len(orders), 6):
            found["answers"].add(
                (await post("/score", orders[start])).content,
                (await post("/score/batch", orders[start : start + 6])).content,
            )
            about = {"order": orders[start]["order_id"]}
            labelled = await post(
                "/labels",
                about
                | {
                    "fraud": start % 4 == 0,
                    "source": ("analyst", "customer", "chargeback")[start // 6 % 3],
                    "note": "by hand",
                },
            )
            found["labels"].add(labelled.content)
            if start % 5 == 0:
                found["labels"].add((await post("/labels", about | {"retracts": labelled.json()["position"]})).content)
        for wrong in WRONG:
            for path in ("/score", "/score/batch", "/labels"):
                answer = await post(path, wrong)
                found["errors"].add(answer.status_code, answer.content)
        found["document"].add((await client.get("/openapi.json")).json())
    database.dispose()
    entries = [msgspec.structs.replace(decode_entry(data), took=0) for _, data in engine.store.log]
    states = sorted((key, value) for key, (value, _) in engine.store.held.items() if isinstance(key, bytes))
    return {name: str(one) for name, one in found.items()} | {
        "live log": str(Hash().add(*map(msgspec.msgpack.encode, entries))),
        "states and records": str(Hash().add(repr(states))),
    }


def record() -> dict[str, str]:
    "The hashes."
    with tempfile.TemporaryDirectory() as home:
        hashes, orders = batch(Path(home) / "orders")
        return hashes | asyncio.run(live(Path(home) / "live", orders))


def test_what_a_fixed_stream_becomes_is_what_it_was():
    was, now = json.loads(RECORD.read_text()), record()
    assert {name: now.get(name) for name in was} == was and now.keys() == was.keys()


if __name__ == "__main__":
    RECORD.write_text(json.dumps(record(), indent=1) + "\n")
