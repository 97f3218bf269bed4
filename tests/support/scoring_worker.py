"""A scoring service with a small model, for tests that start it in processes of its own."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

from fraud_poc.core.settings import Settings, load_settings
from fraud_poc.live.decide import Engine, sample_model
from fraud_poc.live.store import MemoryStore, Meta
from fraud_poc.service import workers

ROOT = Path(__file__).resolve().parents[2]
ROWS = [
    'Value("order_amount")',
    'Count(by=["customer_id", "email"], over=["1h", "30d"])',
    'Mean("order_amount", by="customer_id", over="7d")',
]


def settings_in(folder: Path, **changes) -> Settings:
    return load_settings(
        ROOT / "config" / "orders.toml",
        {"features.rows": ROWS, "batch.folder": str(folder), "database.url": ""} | changes,
    )


def small_engine(settings: Settings, store=None, **more) -> Engine:
    "An engine with a small model; more options of `Engine`."
    model = sample_model(settings, 300, 3, {"created": "2025-06-01T00:00:00+00:00", "metrics": {"auc": 0.9}})
    return Engine(
        settings,
        model,
        store or MemoryStore(Meta("e", 1, model.table.hash, {"next_seq": 0})),
        **more,
    )


async def filled(store, table_hash: str, next_seq: int = 0) -> None:
    "Mark a Redis store as filled, with no states."
    meta = Meta("5eed", 1, table_hash, {"next_seq": next_seq})
    await store.call(
        "MSET", store.names.now, meta.marker, store.names.meta, json.dumps(asdict(meta)), store.names.seq, next_seq - 1
    )


def worker():
    # XGBoost, which the sample model needs, loads scikit-learn where it finds it: 5 s of CPU time in each process
    sys.modules.setdefault("sklearn", None)
    return workers.worker_app(small_engine)


def serve_here(settings: str, url: str) -> None:
    "Serve until a signal comes; the address is printed."
    workers.serve(
        Settings.model_validate(json.loads(settings)),
        url,
        lambda address: print(address, flush=True),
        factory="support.scoring_worker:worker",
    )
