"""Generated decisions for the desk: a small shop, customers with habits, thieves who share devices, and reasons."""

import json

import numpy as np
import sqlalchemy as sa

from fraud_poc.core.database import add_up, signed, writing
from fraud_poc.core.events import key_of
from fraud_poc.desk import trends
from fraud_poc.desk.tables import cases, days, decisions, labels, links, scores

DAY = 86_400_000
CITIES = ("Lyon", "Porto", "Graz", "Gent", "Turku", "Bergen", "Brno", "Cork")


def reasons_of(amount: float, usual: float, p: float, shared: int, rng: np.random.Generator) -> list[dict]:
    "Five reasons, the strongest first; as a model could give them."
    found = [
        (
            "order_amount_ratio_30d_by_customer_id",
            amount / usual,
            np.log(amount / usual + 0.4) + 0.3,
            f"amount {amount:,.2f}, {amount / usual:.1f} times this customer's 30-day mean"
            if amount > usual
            else f"amount {amount:,.2f}, no more than usual for this customer",
        ),
        (
            "customer_id_distinct_7d_by_device",
            shared,
            0.9 * np.log1p(shared),
            f"{shared} other customers used this device within 7 days"
            if shared
            else "device used by this customer alone",
        ),
        (
            "age_by_email",
            0.0,
            1.1 if p > 0.3 else -0.3,
            "first order with this email" if p > 0.3 else "email known for 214 days",
        ),
        ("order_count_1h_by_ip_addr", 4.0, 0.7 * p * 2, f"{1 + int(6 * p)} orders from this address within an hour"),
        (
            "hour",
            3.0,
            rng.normal(0.1, 0.25),
            "ordered at night, between 02:00 and 05:00" if rng.random() < 0.4 else "ordered in the afternoon",
        ),
    ]
    return [
        {"feature": name, "value": float(value), "contribution": round(float(weight), 3), "words": words}
        for name, value, weight, words in sorted(found, key=lambda one: -abs(one[2]))
    ]


def fill(
    engine: sa.Engine,
    settings,
    secret: bytes,
    now: int,
    count: int = 2500,
    span: int = 45,
    first: int = 1,
    seed: int = 7,
) -> None:
    "Add decisions of the last days, their cases, the labels of closed ones, and the rollups."
    rng, entities = np.random.default_rng(seed), settings.columns.entities
    times = np.sort(now - (rng.random(count) ** 1.15 * span * DAY).astype(np.int64))
    rows = {table: [] for table in (decisions, links, cases, labels, days, scores)}
    for number, when in enumerate(map(int, times), first):
        customer = int(rng.integers(count // 12 + 1))
        thief, usual = rng.random() < 0.05, 25 + 60 * (customer % 7)
        amount = round(float(usual * rng.lognormal(1.3 if thief else -0.1, 0.5)), 2)
        p = float(rng.beta(2.5, 3.5) if thief else rng.beta(0.35, 22))
        lost = 0.9 * amount + 20
        action = "block" if p > 0.62 else "review" if p * lost > 3.5 else "pass"
        band = {"pass": "low", "review": "medium", "block": "high"}[action]
        order = {
            "order_id": f"o{48_000 + number}",
            "order_date": str(np.datetime64(when, "ms"))[:19],
            "order_amount": amount,
            "customer_id": f"c{1000 + customer}",
            "email": f"mail{customer}@example.org",
            "ip_addr": f"192.0.2.{customer % 250}" if not thief else f"198.51.100.{number % 5}",
            "device": f"d{customer}" if not thief else f"d-9{number % 6}",
            "location": CITIES[customer % len(CITIES)],
        }
        places = {
            name: "new" if thief and name != "customer_id" and rng.random() < 0.5 else "known" for name in entities
        }
        reasons = reasons_of(amount, usual, p, int(rng.integers(2, 9)) if thief else 0, rng) if band != "low" else None
        units, day = round(amount * 100), when // DAY
        rows[decisions].append(
            {
                "id": number,
                "log": "e",
                "position": number,
                "order_id": order["order_id"],
                "id_key": number,
                "time": when,
                "decided": when,
                "amount": units,
                "score": p,
                "probability": p,
                "band": band,
                "action": action,
                "loss": round(p * lost * 100),
                "customer": order["customer_id"],
                "entities": places,
                "body": json.dumps(order),
                "vector": b"",
                "model": "0" * 64,
                "policy": "1" * 64,
                "feature_table": "2" * 64,
                "reasons": reasons,
                "took_us": 900,
            }
        )
        rows[links] += [
            {"decision_id": number, "entity": name, "key": signed(key_of(order[name], secret))} for name in entities
        ]
        waiting, fraud = now - when < 3 * DAY, bool(rng.random() < p * 1.05)
        saved = round((p * lost * 0.95 - 3.2) * 100) if action != "pass" else 0
        if action != "pass":
            review_priority = round((p * lost * 0.95 - 3.2) / 4, 4)
            closed = {"status": "open", "closed": None, "closed_by": None, "assertion": None, "source": None}
            if not waiting:
                closed = {
                    "status": "flagged" if fraud else "cleared",
                    "closed": when + 3_600_000,
                    "closed_by": "analyst-2",
                    "assertion": -number,
                    "source": "analyst",
                }
            rows[cases].append(
                {
                    "decision_id": number,
                    "opened": when,
                    "note": "",
                    "review_priority": review_priority,
                    "band": band,
                    "action": action,
                    "amount": units,
                    "customer": order["customer_id"],
                    "time": when,
                    "log": "e",
                    "position": -number,
                }
                | closed
            )
        if not waiting:
            rows[labels].append(
                {
                    "log": "e",
                    "position": -number,
                    "order_id": order["order_id"],
                    "decision_id": number,
                    "kind": "assert",
                    "asserted": int(fraud),
                    "label": int(fraud),
                    "previous": -1,
                    "source": "analyst" if action != "pass" else "chargeback",
                    "known": when + 3_600_000,
                    "noted": when + 3_600_000,
                    "note": "",
                    "actor": "person",
                    "by": "analyst-2",
                }
            )
        rows[days].append(
            {
                "day": day,
                "band": band,
                "action": action,
                "events": 1,
                "amount": units,
                "frauds": int(fraud),
                "fraud_amount": units * fraud,
                "saved": saved,
            }
        )
        rows[scores].append({"day": day, "bucket": min(int(p * 20), 19), "events": 1})
    with writing(engine) as connection:
        for table in (decisions, links, cases, labels):
            connection.execute(sa.insert(table), rows[table]) if rows[table] else None
        for table in (days, scores):
            add_up(connection, table, rows[table])
    while trends.count_outcomes(engine, settings.columns.decimals):
        pass
