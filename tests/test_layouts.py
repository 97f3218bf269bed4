"""The layouts that people bring: `propose` finds what their columns are, and all steps run to a judged model."""

import json
import tomllib

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
        "categories": ["type"],
        "shared": {"account": ["nameOrig", "nameDest"]},
    },
    "sparkov": {
        "id": ["trans_num"],
        "time": "trans_date_trans_time",
        "amount": "amt",
        "entities": ["cc_num", "merchant"],
    },
    "banksim": {
        "time": "step",
        "time_unit": "d",
        "amount": "amount",
        "entities": ["customer", "merchant"],
        "categories": ["category"],
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
    assert written["labels"]["column"] == LABELS[name] and written["acceptance"]["card"] == FOUND[name]["entities"][0]


@every_layout
def test_from_a_file_to_a_judged_model(root, files, tmp_path, monkeypatch, name):
    if name not in DRAWN:
        without_plots(monkeypatch)
    settings = load_settings(
        root / "config" / "layouts" / f"{name}.toml", QUICK | {"batch.folder": str(tmp_path / "out")}
    )
    assert settings.model_dump(include={"columns"})["columns"].items() >= FOUND[name].items() or name == "creditcard"
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
