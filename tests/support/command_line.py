"""`fraud-poc` called in the process of a test, and a small domain of its own."""

import json
from functools import cache
from pathlib import Path

import typer.testing
from typer.main import get_command
from typer.testing import CliRunner

from fraud_poc.cli import app
from support import house

# the tree of commands is built from the signatures of all of them: once here, and not for each call
typer.testing._get_command = cache(get_command)

PAYMENTS = """
domain = {name = "payments"}
input = {events = "", labels = ""}
limits = {min_amount = 0.0, max_amount = 1000.0, earliest = "2000-01-01", latest = "2100-01-01", gap = "400d"}
batch = {folder = "out", scheduler = "", threads = 1, partitions = 0, part_rows = 1000, step_rows = 1000}
[columns]
id = ["id"]
time = "at"
time_format = "iso"
timezone = "UTC"
amount = "amount"
decimals = 2
entities = ["who"]
categories = []
missing_values = ["NULL"]
[labels]
column = "fraud"
fraud_values = [1]
legitimate_values = [0]
unresolved_values = []
other_values = "refuse"
time_column = ""
delay = "2d"
source = "customer"
priority = ["chargeback", "analyst", "customer", "rule"]
[features]
retention = "30d"
forget_after = "90d"
exact_events = 16
set_size = 4
rows = ['Count(by="who", over="1d")', 'Mean("amount", by="who", over="7d")']
"""


def call(*words, typed: str = ""):
    "Run a command; `typed` is its standard input."
    env = {"COLUMNS": "120", "TERMINAL_WIDTH": "120", "NO_COLOR": "1", "FORCE_COLOR": None}
    return CliRunner().invoke(app, [str(word) for word in words], input=typed, env=env)


def as_json(*words, typed: str = "") -> dict:
    "Summary of a command that must succeed and print one JSON object alone."
    done = call(*words, "--json", typed=typed)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def options_of(root: Path, sets: dict) -> list:
    "Options for the sample's domain with other settings."
    return [
        "--config",
        root / "config" / "orders.toml",
        *[word for name, value in sets.items() for word in ("--set", f"{name}={value}")],
    ]


def payments_in(root: Path, folder: Path) -> list:
    "Options that name the small domain, whose configuration is written into a folder."
    (folder / "payments.toml").write_text(PAYMENTS + house.rest_of_settings(root, "who"))
    return ["--config", folder / "payments.toml"]
