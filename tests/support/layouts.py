"""Small files that look like public datasets: the same columns and style of values, with frauds to be found."""

from pathlib import Path

import numpy as np
import pandas as pd

ROWS = 3_000


def _fraud(rng: np.random.Generator, share: float) -> np.ndarray:
    return rng.random(ROWS) < share


def paysim(rng: np.random.Generator) -> pd.DataFrame:
    "Mobile money: a step is an hour; accounts on both sides; balances before and after."
    fraud = _fraud(rng, 0.04)
    kinds = np.where(
        fraud,
        rng.choice(["TRANSFER", "CASH_OUT"], ROWS),
        rng.choice(["PAYMENT", "CASH_OUT", "CASH_IN", "TRANSFER", "DEBIT"], ROWS, p=[0.34, 0.35, 0.22, 0.08, 0.01]),
    )
    before = np.round(rng.gamma(1.0, 60_000, ROWS), 2)
    amount = np.round(np.where(fraud, before, rng.gamma(1.2, 30_000, ROWS)), 2)
    customers = 1_000_000_000 + rng.permutation(ROWS)
    dest = np.where(fraud, rng.integers(0, 40, ROWS), rng.integers(0, 900, ROWS)) + 500_000_000
    return pd.DataFrame(
        {
            "step": np.sort(rng.integers(1, 744, ROWS)),
            "type": kinds,
            "amount": amount,
            "nameOrig": [f"C{number}" for number in customers],
            "oldbalanceOrg": before,
            "newbalanceOrig": np.round(np.maximum(before - amount, 0), 2),
            "nameDest": [f"{'M' if kind == 'PAYMENT' else 'C'}{number}" for kind, number in zip(kinds, dest)],
            "oldbalanceDest": np.round(rng.gamma(1.0, 90_000, ROWS), 2),
            "newbalanceDest": np.round(rng.gamma(1.0, 90_000, ROWS), 2),
            "isFraud": fraud.astype(int),
            "isFlaggedFraud": (fraud & (amount > 200_000)).astype(int),
        }
    )


def sparkov(rng: np.random.Generator) -> pd.DataFrame:
    "Card payments with an unnamed index, persons and places; the second time is of another year."
    fraud, cards, shops = _fraud(rng, 0.05), 120, 80
    card, shop = rng.integers(0, cards, ROWS), rng.integers(0, shops, ROWS)
    seconds = np.sort(rng.integers(0, 120 * 86_400, ROWS))
    time = pd.Timestamp("2019-01-01") + pd.to_timedelta(seconds, unit="s")
    people = pd.DataFrame(
        {
            "first": rng.choice(["Jennifer", "Stephanie", "Edward", "Jeremy"], cards),
            "last": rng.choice(["Banks", "Gill", "Sanchez", "White"], cards),
            "gender": rng.choice(["F", "M"], cards),
            "street": [f"{i} Perry Cove" for i in range(cards)],
            "city": rng.choice(["Moravian Falls", "Orient", "Malad City", "Boulder"], cards),
            "state": rng.choice(["NC", "WA", "ID", "MT"], cards),
            "zip": rng.integers(10_000, 99_999, cards),
            "lat": rng.uniform(30, 48, cards).round(4),
            "long": rng.uniform(-120, -80, cards).round(4),
            "city_pop": rng.integers(100, 90_000, cards),
            "job": rng.choice(["Psychologist, counselling", "Surveyor", "Patent attorney"], cards),
            "dob": pd.Timestamp("1950-01-01") + pd.to_timedelta(rng.integers(0, 18_000, cards), unit="D"),
        }
    ).iloc[card]
    kinds = np.where(fraud, rng.choice(["shopping_net", "misc_net"], ROWS), rng.choice(["grocery_pos", "home"], ROWS))
    kinds = np.where(rng.random(ROWS) < 0.3, "shopping_net", kinds)
    table = pd.DataFrame(
        {
            "trans_date_trans_time": time.strftime("%Y-%m-%d %H:%M:%S"),
            "cc_num": 2_703_186_189_652_095 + card,
            "merchant": [f"fraud_Rippin, Kub and {i}" for i in shop],
            "category": kinds,
            "amt": np.where(fraud, rng.gamma(4, 80, ROWS), rng.gamma(1.5, 45, ROWS)).round(2),
        }
    )
    end = pd.DataFrame(
        {
            "trans_num": [f"{number:032x}" for number in rng.permutation(ROWS) + (1 << 60)],
            "unix_time": 1_325_376_000 + seconds,
            "merch_lat": rng.uniform(30, 48, ROWS).round(6),
            "merch_long": rng.uniform(-120, -80, ROWS).round(6),
            "is_fraud": fraud.astype(int),
        }
    )
    return pd.concat([table, people.reset_index(drop=True), end], axis=1).rename_axis("").reset_index()


def banksim(rng: np.random.Generator) -> pd.DataFrame:
    "Payments at merchants: a step is a day, texts in single quotes, one zip code for all."
    fraud = _fraud(rng, 0.03)
    kinds = np.where(fraud, rng.choice(["'es_travel'", "'es_health'"], ROWS), "'es_transportation'")
    merchant = np.where(fraud, rng.integers(0, 6, ROWS), rng.integers(0, 45, ROWS))
    return pd.DataFrame(
        {
            "step": np.sort(rng.integers(0, 180, ROWS)),
            "customer": [f"'C{1_093_826_151 + i}'" for i in rng.integers(0, 400, ROWS)],
            "age": rng.choice(["'1'", "'2'", "'3'", "'U'"], ROWS),
            "gender": rng.choice(["'F'", "'M'", "'E'"], ROWS),
            "zipcodeOri": "'28007'",
            "merchant": [f"'M{348_934_600 + i}'" for i in merchant],
            "zipMerchant": "'28007'",
            "category": np.where(rng.random(ROWS) < 0.1, "'es_health'", kinds),
            "amount": np.where(fraud, rng.gamma(3, 150, ROWS), rng.gamma(2, 15, ROWS)).round(2),
            "fraud": fraud.astype(int),
        }
    )


def creditcard(rng: np.random.Generator) -> pd.DataFrame:
    "Two days of card payments as principal components: no id, no entity, seconds since the first."
    fraud = _fraud(rng, 0.03)
    table = pd.DataFrame({"Time": np.sort(rng.integers(0, 172_793, ROWS)).astype(float)})
    for i in range(1, 29):
        table[f"V{i}"] = rng.normal(0, 2 / i, ROWS) - fraud * (i in (10, 14, 17)) * 0.2
    table["Amount"] = np.where(fraud, rng.gamma(1.0, 250, ROWS), rng.gamma(1.0, 60, ROWS)).round(2)
    return table.assign(Class=fraud.astype(int))


def ieee_cis(rng: np.random.Generator) -> pd.DataFrame:
    "Online payments with seconds since an unknown day, masked counts and many missing values."
    fraud = _fraud(rng, 0.05)
    card = np.where(fraud, rng.integers(0, 60, ROWS), rng.integers(0, 700, ROWS))
    gaps = lambda values, share: pd.Series(values).where(rng.random(ROWS) >= share)
    table = pd.DataFrame(
        {
            "TransactionID": 2_987_000 + np.arange(ROWS),
            "isFraud": fraud.astype(int),
            "TransactionDT": 86_400 + np.sort(rng.integers(0, 120 * 86_400, ROWS)),
            "TransactionAmt": np.where(fraud, rng.gamma(2, 90, ROWS), rng.gamma(2, 50, ROWS)).round(3),
            "ProductCD": np.where(fraud, "C", rng.choice(["W", "H", "C", "S", "R"], ROWS)),
            "card1": 1_000 + card,
            "card2": gaps(100.0 + card % 90, 0.02),
            "card3": 150.0,
            "card4": rng.choice(["visa", "mastercard", "discover"], ROWS),
            "card5": gaps(100.0 + card % 40, 0.01),
            "card6": rng.choice(["debit", "credit"], ROWS),
            "addr1": gaps(100.0 + rng.integers(0, 60, ROWS), 0.1),
            "addr2": gaps(np.full(ROWS, 87.0), 0.1),
            "dist1": gaps(rng.integers(0, 900, ROWS).astype(float), 0.6),
            "P_emaildomain": gaps(rng.choice(["gmail.com", "yahoo.com", "hotmail.com"], ROWS), 0.15),
            "R_emaildomain": gaps(rng.choice(["gmail.com", "anonymous.com"], ROWS), 0.75),
        }
    )
    more = {f"C{i}": rng.integers(0, 5, ROWS).astype(float) for i in range(1, 15)}
    more |= {f"D{i}": gaps(rng.integers(0, 300, ROWS).astype(float), 0.4) for i in range(1, 16)}
    more |= {f"M{i}": gaps(rng.choice(["T", "F"], ROWS), 0.5) for i in (1, 2, 3, 5, 6, 7, 8, 9)}
    more["M4"] = gaps(rng.choice(["M0", "M1", "M2"], ROWS), 0.5)
    more |= {f"V{i}": gaps(rng.integers(0, 3, ROWS).astype(float), 0.3) for i in range(1, 340)}
    return pd.concat([table, pd.DataFrame(more)], axis=1)


LAYOUTS = {one.__name__: one for one in (paysim, sparkov, banksim, creditcard, ieee_cis)}


def write_layout(name: str, folder: Path) -> Path:
    "A file of a layout, the same in each run."
    path = folder / f"{name}.csv"
    LAYOUTS[name](np.random.default_rng([7, len(name)])).to_csv(path, index=False)
    return path
