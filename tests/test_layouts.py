"""The layouts that people bring: `propose` finds what their columns are, and all steps run to a judged model."""

import json
import tomllib

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.judged import without_plots
from support.layouts import LAYOUTS, ROWS, write_layout
from typer.testing import CliRunner

from fraud_poc.cli import app
from fraud_poc.core.settings import load_settings
from fraud_poc.data.ingest import ingest
from fraud_poc.data.profile import read_sample
from fraud_poc.data.propose import feature_rows, has_history, propose, rows_of, write_proposal
from fraud_poc.features.batch import compute_features
from fraud_poc.features.table import build_table
from fraud_poc.model.acceptance import judge_model
from fraud_poc.model.dataset import make_dataset
from fraud_poc.model.train import train_model

FOUND = {
    "paysim": {
        "id": ["step", "nameOrig", "nameDest", "amount"],
        "time": "step",
        "time_unit": "h",
        "amount": "amount",
        "entities": ["nameOrig", "nameDest"],
        "numbers": {"oldbalanceOrg": 2, "oldbalanceDest": 2},
        "shared": {"account": ["nameOrig", "nameDest"]},
    },
    "sparkov": {
        "id": ["trans_num"],
        "time": "trans_date_trans_time",
        "amount": "amt",
        "entities": ["cc_num", "merchant"],
        "numbers": {"city_pop": 0, "lat": 4, "long": 4, "merch_lat": 6, "merch_long": 6},
    },
    "banksim": {
        "time": "step",
        "time_unit": "d",
        "amount": "amount",
        "entities": ["customer", "merchant"],
    },
    "creditcard": {"time": "Time", "time_unit": "s", "amount": "Amount", "entities": ["V1"]},
    "ieee_cis": {
        "id": ["TransactionID"],
        "time": "TransactionDT",
        "time_unit": "s",
        "amount": "TransactionAmt",
        "decimals": 3,
        "entities": ["card1", "addr1"],
    },
}
VOCABULARIES = {
    "paysim": {"type": ["CASH_OUT", "PAYMENT", "CASH_IN", "TRANSFER", "DEBIT"]},
    "banksim": {"category": ["'es_transportation'", "'es_health'", "'es_travel'"]},
    "sparkov": {"category": ["grocery_pos", "shopping_net", "home", "misc_net"]},
    "ieee_cis": {"ProductCD": ["C", "H", "S", "R", "W"], "M4": ["M2", "M1", "M0"]},
}  # of the look-alikes, the most frequent value first
LABELS = {"paysim": "isFraud", "sparkov": "is_fraud", "banksim": "fraud", "creditcard": "Class", "ieee_cis": "isFraud"}
QUICK = {"model.trees": 15, "acceptance.bootstrap": 4, "acceptance.min_auc": 0.5, "batch.threads": 2}
DRAWN = ("paysim", "creditcard")  # plots of a split by time and of a stratified one
every_layout = pytest.mark.parametrize("name", LAYOUTS)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("layouts")
    return {name: write_layout(name, folder) for name in LAYOUTS}


@pytest.fixture(scope="module")
def proposals(files):
    return {name: propose(str(path)) for name, path in files.items()}


def judged(settings) -> dict:
    for step in (compute_features, make_dataset, train_model):
        step(settings)
    return judge_model(settings)


@every_layout
def test_what_the_columns_are_is_found(proposals, tmp_path, name):
    out = tmp_path / f"{name}.toml"
    write_proposal(proposals[name], out, lambda path: build_table(load_settings(path)))
    written = tomllib.loads(out.read_text())
    assert {key: written["columns"][key] for key in FOUND[name]} == FOUND[name]
    words = written["columns"].get("vocabularies", {})
    assert words.items() >= VOCABULARIES.get(name, {}).items()
    assert written["labels"]["column"] == LABELS[name] and written["acceptance"]["card"] == FOUND[name]["entities"][0]


@every_layout
def test_from_a_file_to_a_judged_model(root, proposals, files, tmp_path, monkeypatch, name):
    if name not in DRAWN:
        without_plots(monkeypatch)
    settings = load_settings(
        root / "config" / "layouts" / f"{name}.toml", QUICK | {"batch.folder": str(tmp_path / "out")}
    )
    assert settings.model_dump(include={"columns"})["columns"].items() >= FOUND[name].items() or name == "creditcard"
    for column, values in VOCABULARIES.get(name, {}).items():
        assert set(values) <= set(settings.columns.vocabularies[column])
    assert set(proposals[name].names("number")) <= settings.columns.numbers.keys()
    done = ingest(settings, str(files[name]))
    assert (done["events"], done["events_rejected"], done["labels_rejected"]) == (ROWS, 0, 0)
    result = judged(settings)
    assert result["metrics"]["auc"]["value"] > 0.6, result["reasons"]
    assert ("warning" in result) == (name == "creditcard")


def test_a_proposal_runs_as_it_is(proposals, tmp_path, monkeypatch):
    without_plots(monkeypatch)
    write_proposal(proposals["creditcard"], tmp_path / "creditcard.toml", load_settings)
    settings = load_settings(tmp_path / "creditcard.toml", QUICK)
    assert ingest(settings)["events"] == ROWS
    assert judged(settings)["reasons"][-1].startswith("judged on a stratified split")


def test_paysim_leaks_are_named_and_not_used(proposals):
    paysim = proposals["paysim"]
    assert set(paysim.names("leak")) == {"newbalanceOrig", "newbalanceDest", "isFlaggedFraud"}
    assert 'Count(by="nameDest", role="nameOrig", over=["30d", "lifetime"])' in feature_rows(paysim)
    assert not any(name in row for name in paysim.names("leak") for row in feature_rows(paysim))


def test_traits_of_persons_are_not_used(proposals):
    rows = {row[0]: row for row in rows_of(proposals["sparkov"])}
    for name in ("first", "last", "gender", "dob"):
        assert rows[name][4:6] == ["not shown", "not used"] and "trait of a person" in rows[name][6]
    assert rows["cc_num"][4] == rows["merchant"][4] == rows["trans_num"][4] == "not shown"


def test_without_entities_it_says_what_is_lost(proposals, files):
    assert not has_history(proposals["creditcard"]) and all(has_history(proposals[n]) for n in LAYOUTS if n[0] != "c")
    result = CliRunner().invoke(app, ["propose", str(files["creditcard"])])
    assert result.exit_code == 0 and "bring such a column" in " ".join(result.stdout.split())


def test_the_command_writes_once_and_overwrites_only_when_asked(files, tmp_path):
    out = tmp_path / "paysim.toml"
    words = ["propose", str(files["paysim"]), "--out", str(out), "--json"]
    first = CliRunner().invoke(app, words)
    assert first.exit_code == 0, first.output
    answer = json.loads(first.stdout.splitlines()[-1])
    assert answer["ok"] and answer["toml"] == str(out)
    assert [c["proposed_for"] for c in answer["columns"] if c["column"] == "isFlaggedFraud"] == ["leak"]
    out.write_text("# mine\n")
    assert CliRunner().invoke(app, words).exit_code == 2 and out.read_text() == "# mine\n"
    assert CliRunner().invoke(app, [*words, "--force"]).exit_code == 0 and "nameOrig" in out.read_text()
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_parquet_and_json_lines_say_the_same(proposals, tmp_path):
    table = proposals["sparkov"].sample.table
    frame = table.to_pandas().astype({"amt": float, "cc_num": int, "is_fraud": int})
    pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), tmp_path / "sparkov.parquet")
    frame.assign(tags=[["a", "b"]] * ROWS).to_json(tmp_path / "sparkov.jsonl", orient="records", lines=True)
    for name in ("sparkov.parquet", "sparkov.jsonl"):
        found = propose(str(tmp_path / name))
        for role in ("time", "amount", "label", "entity", "category"):
            assert found.names(role) == proposals["sparkov"].names(role), name
    assert found.sample.left == {"tags": "it holds lists or records"}
    write_proposal(found, tmp_path / "lines.toml", load_settings)
    assert ingest(load_settings(tmp_path / "lines.toml"))["events"] == ROWS


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b\n", "holds no rows"),
        ("id,at,amount\n1,2025-01-01,3.5\n2,2025-01-02,4.5\n", "no column looks like a label"),
        ("id,amount,is_fraud\n1,3.5,0\n2,4.5,1\n", "no column looks like the time"),
        ("id,at,who,is_fraud\na,2025-01-01,x,0\nb,2025-01-02,y,1\n", "no column is a number"),
    ],
)
def test_what_is_missing_is_said(tmp_path, text, words):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(ValueError, match=words):
        propose(str(tmp_path / "x.csv"))


def test_a_file_of_another_spelling_is_read_and_its_spelling_written(tmp_path):
    lines = [f"o{i};{i % 28 + 1:02d}/{i % 10 + 1:02d}/2025;{i % 7},50;c{i % 20};{int(i % 9 == 0)}" for i in range(300)]
    (tmp_path / "shop.csv").write_text("\n".join(["order_id;placed_on;amount;customer;is_fraud", *lines]) + "\n")
    assert read_sample(str(tmp_path / "shop.csv")).input.separator == ";"
    write_proposal(propose(str(tmp_path / "shop.csv")), tmp_path / "shop.toml", load_settings)
    settings = load_settings(tmp_path / "shop.toml")
    assert (settings.input.decimal, settings.input.date_format) == (",", "dayfirst")
    done = ingest(settings)
    assert (done["events"], done["events_rejected"]) == (300, 0)


def a_shop(**more) -> pd.DataFrame:
    "900 orders of 90 days, 100 of them frauds; more columns by name."
    at = pd.Timestamp("2025-01-01") + pd.to_timedelta(np.arange(900) * 2.4, unit="h")
    columns = {
        "order_id": [f"o{i}" for i in range(900)],
        "placed_at": at,
        "customer": [f"c{i * 7 % 60}" for i in range(900)],
        "amount": (np.arange(900) * 37 % 400 / 4).round(2),
        "is_fraud": (np.arange(900) % 9 == 4).astype(int),
    }
    return pd.DataFrame(columns | more)


def proposed(table: pd.DataFrame, folder, label: str = "") -> tuple:
    "The proposal for a table, and the settings that it writes, with their feature table checked."
    table.to_csv(folder / "shop.csv", index=False)
    found = propose(str(folder / "shop.csv"), label)
    write_proposal(found, folder / "shop.toml", lambda path: build_table(load_settings(path)), force=True)
    return found, load_settings(folder / "shop.toml")


@pytest.mark.parametrize("name", ["label_time", "reported_at", "charged_back_at", "fraud_known_on"])
def test_the_time_of_a_label_is_found(tmp_path, name):
    shop = a_shop()
    known = shop.placed_at + pd.Timedelta(45, "D")
    found, settings = proposed(shop.assign(**{name: known}), tmp_path)
    assert (settings.labels.time_column, settings.labels.delay) == (name, "") and found.names("time") == ["placed_at"]
    assert settings.training.delay == "17d" and "too short for a gap" in (tmp_path / "shop.toml").read_text()
    assert ingest(settings)["events_rejected"] == 0
    # a time of frauds alone dates no other label: it says how late a label is, and leaks
    found, settings = proposed(shop.assign(**{name: known.where(shop.is_fraud == 1)}), tmp_path)
    assert (settings.labels.time_column, settings.labels.delay) == ("", "45d") and found.names("leak") == [name]
    assert f"says {name}" in (tmp_path / "shop.toml").read_text()
    # one that is filled in before some events is none
    found, settings = proposed(
        shop.assign(**{name: shop.placed_at.shift(-1).fillna(known) - pd.Timedelta(3, "h")}), tmp_path
    )
    assert (settings.labels.time_column, settings.labels.delay) == ("", "7d")


def test_a_date_of_a_label_is_the_end_of_its_day(tmp_path):
    shop = a_shop()
    found, settings = proposed(shop.assign(label_date=shop.placed_at.dt.date), tmp_path)
    assert settings.labels.time_column == "label_date" and found.late.days == 1


def test_a_label_of_any_name_is_named(tmp_path):
    shop = (
        a_shop()
        .rename(columns={"is_fraud": "outcome_code"})
        .assign(x9=["bad" if i % 9 == 4 else "good" for i in range(900)])
    )
    shop = shop.drop(columns="outcome_code")
    shop.to_csv(tmp_path / "shop.csv", index=False)
    with pytest.raises(ValueError, match="Name yours with --label NAME"):
        propose(str(tmp_path / "shop.csv"))
    _, settings = proposed(shop, tmp_path, "x9")
    assert (settings.labels.column, settings.labels.fraud_values) == ("x9", ["bad"])
    assert settings.labels.legitimate_values == ["good"]
    done = CliRunner().invoke(app, ["propose", str(tmp_path / "shop.csv"), "--label", "x9"])
    assert done.exit_code == 0 and "label" in done.stdout
    for name, words in (("x8", "has no such column; it has order_id"), ("order_id", "has 900 different values")):
        failed = CliRunner().invoke(app, ["propose", str(tmp_path / "shop.csv"), "--label", name])
        assert failed.exit_code == 2 and words in " ".join(failed.output.split())


def test_columns_of_every_kind_are_used(tmp_path, monkeypatch):
    without_plots(monkeypatch)
    shop = a_shop()
    i = np.arange(900)
    shop = shop.assign(
        balance=(i * 13 % 700 / 8).round(3),
        large=i * 10**9 + 5 * 10**11,
        row=i,
        gift=np.where(i % 3 == 0, "yes", "no"),
        channel=np.array(["app", "web", "shop"])[i % 3],
        grade=np.array(["a b", "a-b", "c"])[i % 3],
        **{"kind of card": np.array(["x", "y"])[i % 2], "signup": shop.placed_at - pd.Timedelta(40, "D")},
        delivery_date=shop.placed_at + pd.Timedelta(3, "D"),
        shipped=shop.placed_at + pd.Timedelta(1, "D"),
    )
    shop.loc[::7, ["balance", "channel", "gift"]] = None
    found, settings = proposed(shop, tmp_path)
    columns = settings.columns
    assert columns.numbers == {"balance": 3} and columns.flags == ["gift"]
    assert columns.times == ["signup", "delivery_date"] and found.names("leak") == ["shipped"]
    assert columns.vocabularies.keys() == {"channel", "grade", "kind of card"}
    notes = {row[0]: row[6] for row in rows_of(found)}
    assert "divide them" in notes["large"] and notes["row"].startswith("a number of the row")
    rows = feature_rows(found)
    (asked,) = (row for row in rows if row.startswith('Is("channel", '))
    assert all(f'"{value}"' in asked for value in ("app", "web", "shop")), asked
    assert {'Code("grade")', 'Code("kind of card")', 'Value(["balance"])'} <= set(rows)  # their names would be one
    assert settings.features.derived["signup_ago"] == "placed_at - signup"
    assert ingest(settings)["events"] == 900
    settings = load_settings(tmp_path / "shop.toml", QUICK)
    assert judged(settings)["metrics"]["auc"]["value"] >= 0


def test_the_days_of_training_fit_the_file(tmp_path):
    "From 4 days to a year, with a few strange times, and labels that end early: the dataset is made."
    for days, more in ((4, {}), (8, {}), (20, {}), (70, {}), (365, {}), (70, {"known": 25}), (70, {"stray": 1})):
        shop = a_shop().assign(
            placed_at=pd.Timestamp("2024-06-01") + pd.to_timedelta(np.arange(900) * days / 900, unit="D")
        )
        if "known" in more:
            shop["label_time"] = shop.placed_at + pd.Timedelta(more["known"], "D")
        if "stray" in more:
            shop.loc[0, "placed_at"] = pd.Timestamp("2001-05-05")
        _, settings = proposed(shop, tmp_path)
        settings = load_settings(
            tmp_path / "shop.toml", {"batch.folder": str(tmp_path / f"{days}{len(more)}{[*more]}")}
        )
        ingest(settings)
        compute_features(settings)
        assert make_dataset(settings)["splits"]["test"]["rows"] > 0, (days, more)
