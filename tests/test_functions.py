"""Columns of every kind, expressions, conditions and functions: live as in batch; functions are refused where wrong."""

import importlib
import pickle
import subprocess
import sys

import numpy as np
import pytest
from support.live_parity import live_against_batch
from test_decide import engine_for

from fraud_poc.core.settings import Settings, load_settings
from fraud_poc.data.functions import column_function
from fraud_poc.features.table import build_table
from fraud_poc.live.decide import check_model

START, HOUR = 1_756_000_000_000, 3_600_000
COLUMNS = {
    "columns.entities": ["customer_id", "email"],
    "columns.categories": [],
    "service.optional": ["balance", "items", "gift", "type", "opened"],
    "columns.numbers": {"balance": 2, "items": 0},
    "columns.flags": ["gift"],
    "columns.vocabularies": {"type": ["transfer", "payment"]},
    "columns.times": ["opened"],
}
DERIVED = {
    "spent": "order_amount / balance",
    "cents": "support.columns:cents_of_hour",
    "strain": "support.columns:strain",
    "fresh": "support.columns:fresh",
    "odd": "gift or strain > 1 and type != 'payment'",
}
ROWS = [
    *('Value("balance")', 'Value("gift")', 'Is("type", "transfer")', 'Code("type")', 'Value("spent")'),
    *('Value("cents")', 'Value("strain")', 'Value("fresh")', 'Value("odd")'),
    'Mean("balance", by="customer_id", over=["1h", "lifetime"])',
    'Sum("items", by="email", over="1d", where="not gift")',
    'Median("spent", by="customer_id", last=5)',
    'SameAsLast("type", by="customer_id")',
    'Distinct("gift", by="email", over="lifetime")',
    'Count(by="customer_id", over="1d", where="type == \'transfer\' and balance > 100")',
    'Mean("strain", by="customer_id", over=["1h", "lifetime"])',
    'Max("cents", by="email", over="1d", where="fresh")',
    'Lag("cents", by="customer_id", n=1)',
    'FraudCount(by="customer_id", over="lifetime", where="is_missing(balance) or opened < order_date")',
    'Count(by="email", over="lifetime", where="odd")',
]


def settings_with(root, derived: dict[str, str], rows: list[str]) -> Settings:
    changes = COLUMNS | {"features.derived": derived, "features.rows": rows, "features.exact_events": 16}
    return load_settings(root / "config" / "orders.toml", changes)


@pytest.fixture
def payments(root) -> Settings:
    return settings_with(root, DERIVED, ROWS)


def payment(number: int, draw: np.random.Generator) -> dict:
    "A payment; each of its further columns is missing now and then."
    at = START + 7 * number * 60_000 - int(draw.choice([0, 0, 0, 90])) * 60_000
    some = lambda *values: values[int(draw.integers(len(values)))]
    return {
        "order_id": f"p{number}",
        "order_date": f"{np.datetime64(at, 'ms')}Z",
        "order_amount": some(0.07, 9.99, 120.0, 40.5),
        **{name: f"{name}{draw.integers(4)}" for name in ("customer_id", "email")},
        "balance": some(None, 0, 7.5, 120, 4_000.25),
        "items": some(None, 1, 12),
        "gift": some(None, True, False, False),
        "type": some(None, "transfer", "payment", "exchange"),
        "opened": some(None, f"{np.datetime64(at - 30 * 24 * HOUR, 'ms')}Z", "2017-03-04T05:06:07.089Z"),
    }


@pytest.mark.parametrize("kind", ["memory", "redis"])
def test_live_is_batch_to_the_bit(payments, kind, redis_server):
    table, rng = build_table(payments), np.random.default_rng(3)
    sent = [payment(number, rng) for number in range(240)]

    found, different, replayed = live_against_batch(payments, sent, kind, redis_server, START + 400 * 24 * HOUR)
    assert found["events"] == len(sent) and found["labels"] == 30
    assert (found["differing_bits"], found["differing_flags"], different) == (0, 0, 0)
    vectors = dict(zip(table.names, replayed.vectors.T))
    assert all(np.isnan(values).sum() < len(values) - 10 for values in vectors.values())
    assert {*vectors["type_code"][~np.isnan(vectors["type_code"])]} == {0, 1, 2}


# --- functions of another package -------------------------------------------------------------------------------------

GOOD = """
from math import log1p
import numpy as np
from numba import njit

LIMIT = (100, 2)

@njit
def steps(amount):
    return amount // LIMIT[0]

def level(order_amount: int) -> float:
    return log1p(steps(order_amount)) + np.floor(order_amount / LIMIT[1])
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    "Writes a module, which is imported anew, and gives the name of its package."
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "my_shop").mkdir()
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(source: str, name: str = "features") -> str:
        (tmp_path / "my_shop" / f"{name}.py").write_text(source)
        for known in [known for known in sys.modules if known.startswith("my_shop")]:
            del sys.modules[known]
        importlib.invalidate_caches()
        return f"my_shop.{name}"

    yield write
    for known in [known for known in sys.modules if known.startswith("my_shop")]:
        del sys.modules[known]


def table_of(root, word: str = "my_shop.features:level"):
    return build_table(settings_with(root, {"risk": word}, ['Value("risk")']))


def test_the_source_is_part_of_the_hash(root, package):
    tables = {}
    changes = [("", ""), ("# 2", "# 3"), ("LIMIT = (100, 2)", "LIMIT = (50, 2)"), ("// LIMIT", "% LIMIT")]
    changes += [("from math import log1p", "from numpy import log1p"), ("def level", "# more\n\ndef level")]
    for before, after in changes:
        package(GOOD.replace(before, after) if before else GOOD)
        tables[before] = table_of(root)
    same, *others = [table.hash for table in tables.values()]
    assert [other == same for other in others] == [True, False, False, False, True]
    plain = build_table(settings_with(root, {"risk": "order_amount + 1"}, ['Value("risk")']))
    assert plain.hash not in (same, *others)


def test_a_model_of_another_function_is_refused(root, package):
    package(GOOD)
    settings = settings_with(root, {"risk": "my_shop.features:level"}, ['Value("risk")'])
    bundle = engine_for(settings).model.bundle
    check_model(bundle, build_table(settings))
    package(GOOD.replace("// LIMIT", "% LIMIT"))
    with pytest.raises(ValueError, match="the model was trained on feature table .* train again"):
        check_model(bundle, build_table(settings))


def test_a_file_that_changed_under_a_process_is_refused(root, package, tmp_path):
    package(GOOD)
    importlib.import_module("my_shop.features")
    (tmp_path / "my_shop" / "features.py").write_text(GOOD.replace("np.floor", "np.ceil"))
    with pytest.raises(ValueError, match=r"features.derived.risk: its file has changed .* start this process again"):
        table_of(root)


def test_another_process_finds_the_function_by_its_name(root, package, tmp_path):
    "As a worker of a cluster does; with another source it is refused."
    package(GOOD)
    found = column_function("my_shop.features:level")
    (tmp_path / "found").write_bytes(pickle.dumps(table_of(root).calculation))
    code = (
        "import pickle, sys; import numpy as np; calculation = pickle.load(open('found', 'rb'));"
        "values = calculation.values(np.zeros(1, np.int64), np.array([12345]), None); print(values[-1, 0] >> 1);"
        "print(sorted({'pandas', 'dask', 'xgboost', 'sklearn', 'matplotlib'} & sys.modules.keys()))"
    )
    run = lambda: subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    value, loaded = run().stdout.split("\n")[:2]
    assert int(value) == round(found.function(12_345) * 10_000) and loaded == "[]"
    (tmp_path / "my_shop" / "features.py").write_text(GOOD.replace("np.floor", "np.ceil"))
    assert "my_shop.features:level has another source here: install the same version" in run().stderr


REFUSED = {
    "def f(order_date): return 1": "'order_date' has no type that a column has: write int, float or bool",
    "def f(order_date: int): return 1": "its result has no type",
    "def f(order_date: 'Strange') -> int: return 1": "its types cannot be read: name 'Strange' is not defined",
    "def f(order_day: int) -> int: return order_day": "'order_day' is no column .* add it to columns.numbers",
    "def f(email: int) -> int: return email % 7": "'email' is no column to calculate with",
    "def f(order_date: float) -> float: return order_date": "the column a moment: write order_date: int",
    "def f(gift: int) -> int: return gift": "the column a truth: write gift: bool",
    "def f(type: float) -> float: return type": "the column a choice: write type: int",
    "def f(balance: bool) -> bool: return balance": "write balance: int or balance: float",
    "def f(balance: int) -> int: return balance / 2": "it gives float64, not int: correct its result",
    "def f(balance: int) -> bool: return balance": "it gives int64, not bool",
    "def f(balance: int) -> int: return balance or None": "it may give None|cannot compile",
    "def f(balance: int) -> int | None: return None": "it gives none, not int",
    "def f(balance: int = 2) -> int: return balance": "'balance' is no plain parameter",
    "def f(*balance: int) -> int: return 2": "'balance' is no plain parameter",
    "def f() -> int: return 2": "it has 0 parameters: name 1 to 32 columns",
    "def f(balance: int) -> int: return balance + len('a' + 1)": "numba cannot compile it",
    "def f(balance: int) -> int: return open('x')": "it uses open: use its parameters",
    "def f(balance: int) -> int: return eval('balance')": "it uses eval",
    "def f(balance: int) -> int: return unknown": "it uses unknown",
    "import time\ndef f(balance: int) -> float: return time.time()": r"it uses time \(module\)",
    "import random\ndef f(balance: int) -> float: return random.random()": r"it uses random \(module\)",
    "import numpy as np\ndef f(balance: int) -> float: return np.random.rand()": "it uses np.random",
    "import numpy as np\ndef f(balance: int) -> float: return np.empty(1)[0]": "it uses np.empty",
    "from numpy import empty\ndef f(balance: int) -> float: return empty(1)[0]": "it uses empty",
    "from numpy.random import rand\ndef f(balance: int) -> float: return rand()": "it uses rand",
    "seen = []\ndef f(balance: int) -> int: return len(seen)": r"it uses seen \(list\)",
    "def g(x): return x\ndef f(balance: int) -> int: return g(balance)": r"it uses g \(function\): .* numba.njit",
    "from numba import njit\nimport os\n@njit\ndef g(x): return os.getpid()\ndef f(balance: int) -> int: return g(1)": (
        r"it uses os \(module\)"
    ),
    "def f(balance: int) -> int:\n    global n\n    n = 1\n    return n": "it has global in line 2",
    "def f(balance: int) -> int:\n    import os\n    return 1": "it has import in line 2",
    "def f(balance: int) -> int:\n    raise ValueError\n    return 1": "it has raise in line 2",
    "f = lambda balance: 1": "it is no function of a module|its source cannot be read",
    "def g():\n    n = 2\n    def f(balance: int) -> int: return n\n    return f\nf = g()": "outside of any other",
    "f = 3": "module 'my_shop.features' has no function 'f'",
    "from math import sqrt as f": "has no function 'f'",
    "": "has no function 'f': export it there, or correct the name",
    "1 / 0": r"module 'my_shop.features' cannot be imported \(ZeroDivisionError: .*\): correct it",
    "import not_there": r"cannot be imported \(No module named 'not_there'\): install its package here",
    "def f(:": r"cannot be imported \(SyntaxError",
}


@pytest.mark.parametrize("source", REFUSED)
def test_a_function_that_cannot_be_a_column_is_refused(root, package, source):
    package(source + "\n")
    with pytest.raises(ValueError, match=REFUSED[source]) as refused:
        table_of(root, "my_shop.features:f")
    assert str(refused.value).startswith("features.derived.risk: ")
    assert str(refused.value).endswith("(found 'my_shop.features:f')")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no_shop.features:f", "module 'no_shop.features' cannot be imported"),
        ("__main__:f", "__main__ is another module in each process"),
        ("../features:f", "no expression"),
        ("os:system('x')", "no expression"),
        (".features:f", "no expression"),
    ],
)
def test_only_modules_that_can_be_imported_by_name(root, name, words):
    with pytest.raises(ValueError, match=words):
        table_of(root, name)


def test_a_function_takes_the_column_and_nothing_else_of_the_event(root, package):
    "Types of the guide's table: minor units or major, UTC ms, code, None; missing without it."
    package(
        "def f(order_amount: int, balance: float | None, type: int | None, order_date: int, gift: bool | None)"
        " -> int:\n"
        "    if balance is None or type is None or gift is None:\n        return order_amount\n"
        "    return order_amount + int(balance * 4) + type * 1_000_000 + order_date % 1000 * 10_000_000 - int(gift)\n"
    )
    calculation = table_of(root, "my_shop.features:f").calculation
    bits = {"balance": [2 * 750 + 1, 0], "type": [2 * 2 + 1, 1], "gift": [3, 1]}
    values = calculation.values(
        np.array([5_003, 5_003]), np.array([99, 99]), lambda name: np.array(bits[name], np.uint64)
    )
    assert (values[calculation.row("risk")] >> 1).tolist() == [99 + 30 + 2_000_000 + 30_000_000 - 1, 99]
