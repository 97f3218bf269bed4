"""The commands around the service as a shell sees them: demo, scores, labels, decisions, keys, accounts, audit."""

import json
import re
import shlex
import socket

import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa
from support.command_line import as_json, call, options_of, payments_in
from support.private import careless_umask, open_to_others

from fraud_poc.core.database import open_database, writing
from fraud_poc.core.settings import load_settings
from fraud_poc.data.log import read_manifest, read_part
from fraud_poc.desk.accounts import log_in
from fraud_poc.desk.tables import decisions
from fraud_poc.features.table import build_table
from fraud_poc.live.redis_server import start_redis
from fraud_poc.model.bundle import latest_bundle
from fraud_poc.service.keys import Keys

ADDRESS = "127.0.0.1"


@pytest.fixture
def payments(root, tmp_path):
    return payments_in(root, tmp_path)


def settings_in(root, folder, **changes):
    return load_settings(root / "config" / "orders.toml", {"batch.folder": str(folder), "database.url": ""} | changes)


def demo_words(options: list) -> list:
    "Options of the demo but for its folder."
    pairs = list(zip(options[2::2], options[3::2]))
    return [*options[:2], *[word for pair in pairs if "batch.folder" not in str(pair[1]) for word in pair]]


# --- the demo, and what its model can do ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo(root, tmp_path_factory):
    "What the demo reported of a small sample as long as the configuration wants it; and options that name its folder."
    sets = {
        "batch.folder": tmp_path_factory.mktemp("demo"),
        "sample.orders": 15_000,
        "sample.customers": 2_500,
        "sample.fraud_rate": 0.03,
        "model.trees": 40,
        "acceptance.bootstrap": 20,
        "acceptance.min_auc": 0.6,
        "acceptance.min_average_precision": 0.01,
    }
    with careless_umask():
        reported = as_json("demo", *options_of(root, sets))
    return (
        reported,
        options_of(root, sets | {"batch.folder": reported["folder"], "database.url": "''"}),
        settings_in(root, reported["folder"]),
    )


def test_demo_goes_to_live_decisions(demo):
    "A model, a service, live frauds caught or missed, nothing left running; all of it gets into the desk's database."
    reported, options, settings = demo
    live = reported["live"]
    assert list(reported["steps"])[-1] == "prepare-db" and reported["steps"]["evaluate"]["acceptance"] == "accepted"
    assert (
        live["events"] > 200 and live["frauds"] and live["caught"] == sum(fraud["caught"] for fraud in live["frauds"])
    )
    assert live["line"].startswith(f"curl -s http://{ADDRESS}:") and "X-API-Key: fp_" in live["line"]
    assert not (settings.batch.folder / "redis" / "redis.sock").exists()
    as_json("write-decisions", "--to-end", *options)  # what the service had not written when it was stopped
    engine, own = open_database(settings), ~decisions.c.order_id.startswith("example-")
    with engine.connect() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(decisions).where(own)) == live["events"]
    engine.dispose()


def test_demo_says_what_counts_first(demo):
    "Money, the defrauded amount, the customers who were disturbed; all as the orders turn out."
    live, cost = demo[0]["live"], demo[0]["live"]["money"]
    assert set(cost) == {"policy", "pass", "fixed"} and cost["policy"] < cost["pass"] and live["generated"]
    amounts = [fraud["order"]["order_amount"] for fraud in live["frauds"] if fraud["caught"]]
    assert round(sum(amounts), 2) == live["fraud_amount_caught"] <= live["fraud_amount"]
    assert live["others"] + len(live["frauds"]) == live["events"] > live["not_labelled"] > 0.5 * live["events"]
    assert live["others_reviewed"] + live["others_blocked"] < 0.2 * live["others"]


def test_a_second_demo_starts_what_is_there(demo):
    "The same words, a new key; its orders can be scored with the command that it prints."
    reported, options, settings = demo
    made = ["--set", f"batch.folder={settings.batch.folder.parent}", *demo_words(options)]
    before = (settings.batch.folder / "log" / "manifest.json").read_bytes()
    done = call("demo", *made, "--no-stay")
    assert done.exit_code == 0 and "is made already" in done.stderr and "ingest ..." not in done.stderr
    assert done.stdout.startswith("The policy saved ") and "The frauds among" in done.stdout
    assert re.search(r"^Desk: http://\S+/desk, account demo, password \S+$", done.stdout, re.MULTILINE)
    assert (settings.batch.folder / "log" / "manifest.json").read_bytes() == before
    again = as_json("demo", *made)
    assert again["steps"] == reported["steps"]
    assert {**again["live"], "line": ""} == {**reported["live"], "line": ""} and again["live"]["line"] != reported[
        "live"
    ]["line"]
    words = shlex.split(re.search(r"^fraud-poc (score .*)$", done.stdout, re.MULTILINE)[1])
    tried = as_json(*words)
    assert [a["id"] for a in tried["answers"]] == [order["order_id"] for order in reported["live"]["try"]]
    assert not any(a["degraded"] or a["known_before"] for a in tried["answers"])


def test_what_the_demo_leaves_is_for_its_owner_alone(demo):
    folder = demo[2].batch.folder
    assert len(list(folder.rglob("*"))) > 30 and open_to_others(folder) == []


def test_a_model_of_another_installation_is_imported_and_said_to_be_theirs(demo, root, tmp_path):
    _, options, settings = demo
    model = latest_bundle(settings, build_table(settings))
    signature = (model.folder / "signature.json").read_bytes()
    (model.folder / "signature.json").unlink()
    try:
        refused = call("policy", *options)
        assert refused.exit_code == 2 and "fraud-poc import-model" in refused.stderr
        reported = as_json("import-model", model.folder, "--from", "risk team, Lyon", *options)
        assert (
            reported["hash"] == model.hash
            and reported["from"] == "risk team, Lyon"
            and reported["installation"] == "unknown"
        )
        assert as_json("policy", *options)["model"] == reported["id"]
    finally:
        (model.folder / "signature.json").write_bytes(signature)


@pytest.mark.parametrize("json_wanted", [[], ["--json"]], ids=["text", "json"])
def test_a_key_that_was_made_is_shown_also_when_the_service_does_not_start(demo, json_wanted):
    with socket.create_server((ADDRESS, 0)) as taken:
        port = ["--set", f"service.port={taken.getsockname()[1]}"]
        name = f"shop{len(json_wanted)}"
        ended = call("serve", "--new-key", name, *demo[1], *port, *json_wanted)
    assert ended.exit_code == 1 and "service.port" in ended.stderr + ended.stdout
    key = re.search(r"fp_\S+", ended.stderr)[0]
    database = open_database(demo[2])
    assert Keys(database).find(key.encode())[0] == name
    database.dispose()


def test_policy_says_what_is_served(demo):
    reported = as_json("policy", *demo[1])
    assert (
        re.fullmatch("[0-9a-f]{64}", reported["policy"])
        and reported["reviews_a_day"] >= 1
        and set(reported["cost_a_day"]) == {"policy", "pass", "block", "fixed"}
    )
    assert reported["saved_a_day"]["pass"] == pytest.approx(
        reported["cost_a_day"]["pass"] - reported["cost_a_day"]["policy"], rel=1e-3, abs=0.02
    )


def test_score_decides_orders_of_files_with_reasons(demo, root):
    _, options, _ = demo
    asked, again = (as_json("score", root / "examples" / "orders.json", *options) for _ in range(2))
    assert (
        asked == again
        and not asked["stored"]
        and [a["id"] for a in asked["answers"]] == ["example-1", "example-2", "example-3"]
    )
    for answer in asked["answers"]:
        assert (
            answer["action"] in ("pass", "review", "block")
            and answer["position"] is None
            and len(answer["reasons"]) == 5
        )
        assert all(reason["words"] and reason["contribution"] for reason in answer["reasons"])
    shown = call("score", root / "examples" / "orders.csv", "--reasons", 2, *options).stdout
    assert "example-4" in shown and "why" in shown and "expected loss" in shown
    kept, twice = (as_json("score", root / "examples" / "orders.csv", "--store", *options) for _ in range(2))
    positions = [a["position"] for a in kept["answers"]]
    assert (
        kept["stored"]
        and positions == list(range(positions[0], positions[0] + 3))
        and [a["position"] for a in twice["answers"]] == positions
    )
    assert all(a["known_before"] for a in twice["answers"]) and [a["reasons"] for a in twice["answers"]] == [
        a["reasons"] for a in kept["answers"]
    ]


def test_model_page_is_written_the_same_again(demo, tmp_path):
    path, texts = tmp_path / "docs" / "model.md", []
    for _ in range(2):
        reported = as_json("model-page", "--page", path, *demo[1])
        texts.append(path.read_text(encoding="utf-8"))
    assert reported["model"] in texts[0] and "## Limits and fairness" in texts[0] and texts[0] == texts[1]


@pytest.mark.parametrize(
    "words, code, remedy",
    [
        (["score", "none.json"], 1, "none.json"),
        (["score", "list.json"], 2, "is no object"),
        (["model-page", "--page", "model.md"], 2, "there is no model"),
        (["policy"], 2, "there is no model"),
        (["serve"], 2, "there is no model"),
        (["feed"], 2, "[sample]"),
        (["collect"], 2, "fraud-poc ingest"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_is_wrong_is_reported(payments, tmp_path, monkeypatch, words, code, remedy):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.json").write_text("[1]")
    done = call(*words, *payments)
    assert (
        done.exit_code == code
        and remedy in done.stderr
        and not done.stdout
        and "Traceback" not in done.stderr
        and not (tmp_path / "model.md").exists()
    )


# --- labels, decisions, forgetting ------------------------------------------------------------------------------------


@pytest.fixture
def sample(root, tmp_path):
    "Options for a few orders with features."
    sets = {
        "batch.folder": tmp_path / "b",
        "database.url": "''",
        "input.events": tmp_path / "b/raw/orders",
        "input.labels": tmp_path / "b/raw/labels",
        "sample.customers": 200,
        "sample.days": 30,
        "features.rows": "[\"Count(by='customer_id', over='30d')\"]",
    }
    options = options_of(root, sets)
    as_json("make-data", *options, "--orders", 1000)
    for name in ("ingest", "features"):
        as_json(name, *options)
    return options, tmp_path / "b"


def test_labels_and_live_orders_come_home(sample, tmp_path):
    "labels FILE, collect, features: what cannot be right is named by row, the rest is in the batch log."
    options, folder = sample
    as_json("prepare-db", *options)
    ids = pq.read_table(next((folder / "log" / "events").glob("*.parquet")), columns=["id"])["id"].to_pylist()[:20]
    (tmp_path / "labels.csv").write_text(
        "\n".join(
            [
                "order,fraud,source,known",
                *[f"{ident},1,analyst,2025-08-01" for ident in ids],
                "nobody,1,analyst,",
                f"{ids[0]},maybe,analyst,",
            ]
        )
    )
    done = call("labels", tmp_path / "labels.csv", *options, "--json")
    reported = json.loads(done.stdout)
    assert (
        done.exit_code == 1
        and not reported["ok"]
        and reported["assertions"] == 20
        and [(row["row"], row["column"]) for row in reported["rejected_rows"]] == [(21, "order"), (22, "fraud")]
    )
    assert (
        "row 22, fraud: 'maybe' is neither yes nor no: write true or false, yes or no, 1 or 0" in done.stderr
        and reported["frauds"] == 20
    )
    assert json.loads(call("labels", tmp_path / "labels.csv", *options, "--json").stdout)["known_before"] == 20
    collected = as_json("collect", *options)
    assert (
        collected["assertions"] == 20
        and collected["events"] == 0
        and collected["frauds"] == collected["labels"] == reported["changed"] > 0
        and "note" not in collected
    )
    assert as_json("collect", *options)["parts"] == 0 and "nothing new" in call("collect", *options).stdout
    as_json("features", *options)
    assert as_json("prepare-db", *options)["replayed"] == 0


def test_prepare_db_trims_what_is_collected_and_written(sample, tmp_path):
    options, folder = sample
    as_json("prepare-db", *options)
    ids = pq.read_table(next((folder / "log" / "events").glob("*.parquet")), columns=["id"])["id"].to_pylist()[:5]
    typed = "\n".join(["order,fraud", *[f"{ident},1" for ident in ids]])
    assert as_json("labels", "-", *options, typed=typed)["assertions"] == 5
    for name in ("collect", "features"):
        as_json(name, *options)
    assert as_json("prepare-db", "--trim", *options)["trimmed"] == 0, "nothing is in the database yet"
    as_json("write-decisions", "--to-end", *options)
    assert [as_json("prepare-db", "--trim", *options)["trimmed"] for _ in range(2)] == [4, 0], (
        "the last entry of a log stays"
    )


def test_decisions_are_written_to_the_end_of_the_log(tmp_path, root):
    from test_writer import append, open_log, order, settings_for

    settings = settings_for(tmp_path / "orders")
    with start_redis(tmp_path / "redis") as server:
        append(server.url, open_log(server.url, settings), map(order, range(5)))
        options = options_of(
            root, {"batch.folder": tmp_path / "orders", "live.redis_url": server.url, "database.url": "''"}
        )
        for _ in range(2):
            reported = as_json("write-decisions", *options, "--to-end")
            assert (reported["log"], reported["position"]) == ("e", 4)


def test_a_customer_is_forgotten(sample):
    "The value can come from standard input; without --yes somebody must be asked."
    options, folder = sample

    def customers():
        return [
            name
            for part in read_manifest(folder)["parts"]
            for name in read_part(folder, "events", part["name"])["customer_id"].to_pylist()
        ]

    customer = customers()[0]
    refused = call("forget", "--customer", customer, *options)
    assert refused.exit_code == 2 and "--yes" in refused.stderr and customer in customers()
    done = call("forget", "--customer", "-", "--yes", "--json", *options, typed=f"{customer}\n")
    reported = json.loads(done.stdout)
    assert (
        done.exit_code == 0
        and reported["ok"]
        and reported["orders"]
        and customer not in done.output
        and customer not in customers()
    )
    assert as_json("forget", "--customer", customer, "--yes", *options)["orders"] == 0


# --- keys, accounts, audit --------------------------------------------------------------------------------------------


@pytest.fixture
def people(root, tmp_path):
    "Calls a command on a database in a temporary folder: exit code, JSON, all output."
    words, engine = (
        options_of(root, {"batch.folder": tmp_path, "database.url": "''"}),
        open_database(settings_in(root, tmp_path)),
    )

    def asked(*command: str, typed: str = "", as_json: bool = True):
        done = call(*command, *words, *(["--json"] if as_json else []), typed=typed)
        return done.exit_code, json.loads(done.stdout) if as_json and done.stdout.startswith("{") else {}, done.output

    asked.settings, asked.engine = settings_in(root, tmp_path), engine
    yield asked
    engine.dispose()


def test_keys_on_the_command_line(people):
    code, made, _ = people("keys", "new", "shop", "--scope", "score", "--scope", "labels")
    assert code == 0 and made["key"].startswith("fp_") and made["scopes"] == "score labels"
    keys = Keys(people.engine)
    assert keys.find(made["key"].encode()) == ("shop", frozenset({"score", "labels"}))
    listed, table = people("keys", "list")[1]["keys"], people("keys", "list", as_json=False)[2]
    assert [(key["name"], key["scopes"], key["revoked"]) for key in listed] == [
        ("shop", ["labels", "score"], None)
    ] and "labels score" in table
    assert made["key"] not in table and made["key"] not in json.dumps(listed)
    for words, remedy in (
        (["new", "shop", "--scope", "score"], "revoke it first"),
        (["new", "bank", "--scope", "all"], "score, labels, read, metrics"),
        (["revoke", "bank"], "keys list"),
    ):
        code, reported, text = people("keys", *words)
        assert code == 2 and remedy in reported["error"] and "Traceback" not in text
    assert people("keys", "new", "bank")[0] == 2
    assert people("keys", "revoke", "shop")[0] == 0
    keys.refresh()
    assert keys.find(made["key"].encode()) is None


def test_accounts_on_the_command_line(people):
    def admitted(name: str, password: str):
        return log_in(people.engine, people.settings, name, password, ADDRESS)

    sentence, other = "a sentence of hers", "another sentence"
    code, made, text = people("accounts", "new", "ann", "--role", "analyst", typed=sentence + "\n")
    assert code == 0 and made["account"] == "ann" and "password" not in made and sentence not in text
    code, made, _ = people("accounts", "new", "bob", "--role", "viewer", "--random")
    assert code == 0 and admitted("bob", made["password"]) and admitted("ann", sentence)
    for words, typed, remedy in (
        (["new", "ann", "--role", "viewer"], sentence, "already"),
        (["new", "eve", "--role", "owner"], sentence, "viewer, analyst, admin"),
        (["new", "eve", "--role", "viewer"], "short\n", "12 to 256"),
        (["new", "eve", "--role", "viewer"], "", "--random"),
        (["role", "eve", "admin"], "", "accounts list"),
        (["disable", "eve"], "", "accounts list"),
        (["password", "eve"], sentence, "accounts list"),
    ):
        code, reported, text = people("accounts", *words, typed=typed)
        assert code == 2 and remedy in reported["error"] and "Traceback" not in text, (words, text)
    for words, typed in ((["role", "ann", "admin"], ""), (["disable", "bob"], ""), (["password", "ann"], other + "\n")):
        assert people("accounts", *words, typed=typed)[0] == 0
    rows = people("accounts", "list")[1]["accounts"]
    assert [(row["name"], row["role"], row["disabled"] is None) for row in rows] == [
        ("ann", "admin", True),
        ("bob", "viewer", False),
    ] and admitted("ann", other)


def test_the_audit_on_the_command_line(people):
    assert people("audit", "list", as_json=False)[2].startswith("audit: none")
    for name in ("shop", "bank"):
        people("keys", "new", name, "--scope", "read")
    code, reported, _ = people("audit", "verify")
    assert code == 0 and reported["result"] == "intact" and reported["rows"] == 2
    rows = people("audit", "list", "--last", "1")[1]["audit"]
    assert [(row["number"], row["what"], row["about"]) for row in rows] == [(2, "key made", "bank")] and rows[0][
        "who"
    ].endswith("command line)")
    assert (
        people("audit", "verify", "--noted", reported["note"])[0] == 0
        and people("audit", "verify", "--noted", "2")[0] == 2
    )
    assert people("audit", "verify", "--noted", f"2:{'0' * 64}")[0] == 1
    with writing(people.engine) as connection:
        connection.execute(sa.text("DROP TRIGGER audit_no_update"))
        connection.execute(sa.text("UPDATE audit SET who = 'nobody' WHERE number = 1"))
    code, reported, _ = people("audit", "verify")
    assert code == 1 and "audit row 1 was changed" in reported["result"]


# --- help -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        "labels",
        "collect",
        "write-decisions",
        "forget",
        "score",
        "policy",
        "model-page",
        "import-model",
        "feed",
        "serve",
        "prepare-db",
        "keys new",
        "accounts new",
        "audit verify",
    ],
)
def test_help_has_examples(command):
    done = call(*command.split(), "--help")
    assert done.exit_code == 0 and f"fraud-poc {command}" in done.stdout.split("Examples:")[1]
    for option in ("--config", "--set", "--json"):
        assert option in done.stdout
