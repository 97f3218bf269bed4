"""The command as a shell sees it: what it prints where, how it ends, and what it leaves behind."""

import fcntl
import io
import json
import logging
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import time
import unicodedata
from contextlib import redirect_stderr, redirect_stdout, suppress

import pyarrow.parquet as pq
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from support.command_line import PAYMENTS, as_json, call, options_of, payments_in
from support.judged import undrawn
from support.waiting import LONG, ended, until

from fraud_poc.cli import answers_table, app
from fraud_poc.core.logs import JsonLines, printable
from fraud_poc.core.terminal import Screen, ending, parse_overrides, parse_value, rows_table, table_of
from fraud_poc.live.redis_server import server_runs

ROWS = [f"p{i},2025-03-{1 + i % 20:02} 10:00:00,ann,{10 + i}.50,{int(i % 7 == 0)}" for i in range(60)]


@pytest.fixture
def payments(root, tmp_path):
    return payments_in(root, tmp_path)


@pytest.fixture(scope="module")
def orders(root, tmp_path_factory):
    "Options for a small sample of orders, and what each step reported."
    home = tmp_path_factory.mktemp("orders")
    sets = {
        "batch.folder": home,
        "input.events": home / "raw/orders",
        "input.labels": home / "raw/labels",
        "sample.customers": 1500,
        "sample.days": 70,
    }
    options = options_of(root, sets)
    reported = {"make-data": as_json("make-data", *options, "--orders", 8000)}
    for name in ("ingest", "features", "describe"):
        reported[name] = as_json(name, *options)
    return options, reported, home


def csv(tmp_path, *rows, name="in.csv"):
    path = tmp_path / name
    path.write_text("\n".join(["id,at,who,amount,fraud", *rows]) + "\n")
    return path


# --- what goes well ---------------------------------------------------------------------------------------------------


def test_steps_hand_over_to_each_other(orders):
    _, reported, home = orders
    assert (
        reported["make-data"]["orders"]
        == reported["ingest"]["events"]
        == reported["features"]["new_events"]
        == reported["describe"]["events"]
        > 7000
    )
    for name, result in reported.items():
        assert (
            result["command"] == name
            and result["ok"] is True
            and result["seconds"] > 0
            and result["rows_per_second"] > 0
        )
    assert (home / "describe" / "index.html").is_file() and reported["describe"]["page"] == str(
        home / "describe" / "index.html"
    )


def test_a_second_run_does_nothing_new(orders):
    options, reported, _ = orders
    again = as_json("features", *options)
    assert again["new_events"] == again["rows"] == 0 and again["events"] == reported["features"]["events"]
    assert "nothing new" in call("features", *options).stdout
    repeated = as_json("ingest", *options)
    assert repeated["events"] == 0 and repeated["repeats"] == reported["ingest"]["events"]


def test_tables_go_to_stdout_and_progress_does_not(orders):
    options, *_ = orders
    done = call("features", *options)
    assert "entities customer id" in done.stdout and "seconds" in done.stdout and "\x1b" not in done.stdout
    done = call("features", *options, "--json")
    assert done.stdout.count("\n") == 1 and "entities customer id" in done.stderr


def test_new_rows_cost_only_themselves_and_rejects_are_reported(payments, tmp_path):
    bad = ["x1,2025-03-02,ann,twelve,0", "x2,soon,ann,1.0,0", "x3,2025-03-02,ann,-5,0", ",2025-03-02,ann,1.0,0"]
    done = call("ingest", *payments, "--input", csv(tmp_path, *ROWS, *bad, ROWS[0]))
    assert done.exit_code == 0 and "rejected" in done.stdout
    assert as_json("features", *payments)["new_events"] == 60
    more = as_json("ingest", *payments, "--input", csv(tmp_path, "q1,2025-03-25 10:00:00,ann,3.5,", "q2,later,ann,1,0"))
    assert (more["events"], more["events_rejected"], sum(more["rejected"].values())) == (1, 1, 1)
    assert pq.read_table(more["rejects"]).to_pylist()[0]["value"] == "later"
    again = as_json("features", *payments)
    assert (again["new_events"], again["events"]) == (1, 61)
    first = as_json("ingest", *payments, "--replace", "--input", csv(tmp_path, *ROWS, *bad, ROWS[0]))
    assert (first["rows_read"], first["events"], first["repeats"], first["events_rejected"]) == (65, 60, 1, 4) and len(
        first["rejected"]
    ) == 4


def test_replaced_log_wants_replaced_features(payments, tmp_path):
    as_json("ingest", *payments, "--input", csv(tmp_path, *ROWS))
    as_json("features", *payments)
    as_json("ingest", *payments, "--replace", "--input", csv(tmp_path, *ROWS[:30]))
    failed = call("features", *payments)
    assert failed.exit_code == 2 and "--replace" in failed.stderr
    assert as_json("features", *payments, "--replace")["new_events"] == 30


def test_demo_on_a_file_leaves_the_log_alone(payments, tmp_path, monkeypatch):
    undrawn(monkeypatch)
    as_json("ingest", *payments, "--input", csv(tmp_path, *ROWS))
    before = (tmp_path / "out" / "log" / "manifest.json").read_bytes()
    done = call("demo", *payments, "--input", csv(tmp_path, *ROWS, "z,2025-04-01,bob,1,0", name="other.csv"), "--json")
    reported = json.loads(done.stdout)
    assert done.exit_code == reported["exit_code"] == 1 and not reported["ok"] and reported["live"] == {}
    assert "there is no model of this data" in reported["error"] and reported["error"] in done.stderr
    assert (
        list(reported["steps"]) == ["ingest", "features", "describe"] and reported["steps"]["describe"]["events"] == 61
    )
    assert (tmp_path / "out" / "log" / "manifest.json").read_bytes() == before and reported["folder"] == str(
        tmp_path / "out" / "demo"
    )
    assert "make-data" not in call("demo", *payments, "--input", tmp_path / "other.csv").stdout


def test_demo_makes_its_own_data(orders, monkeypatch):
    undrawn(monkeypatch)
    options, *_ = orders
    done = call("demo", *options, "--set", "sample.orders=8000")
    assert done.exit_code == 1 and "there is no model" in done.stderr.splitlines()[-1], done.output
    for word in ("make-data", "ingest", "features", "describe", "index.html", "states of customer id"):
        assert word in done.stdout
    assert not re.search(r"Traceback|Warning", done.stderr)


def test_naming_events_leaves_out_other_labels(orders, tmp_path):
    options, _, home = orders
    result = as_json("ingest", *options, "--set", f"batch.folder={tmp_path}", "--input", home / "raw" / "orders")
    assert result["events"] > 7000 and result["labels"] == result["labels_read"] == 0


@pytest.mark.parametrize(
    "end, remedy", [("soon", "2025-06-30"), ("2999-01-01", "future"), ("2025-06-31", "2025-06-30T14")]
)
def test_a_demo_ends_at_a_moment_that_was(orders, end, remedy):
    options, *_ = orders
    failed = call("demo", *options, "--end", end)
    assert failed.exit_code == 2 and repr(end) in failed.stderr and remedy in failed.stderr and not failed.stdout


def test_the_demo_ends_in_this_hour_and_the_same_end_gives_the_same_bytes(root, tmp_path):
    from fraud_poc.core.events import system_clock
    from fraud_poc.core.settings import load_settings
    from fraud_poc.data.sample import make_data
    from fraud_poc.data.shop import HOUR, period
    from fraud_poc.demo import demo_settings

    small = {"sample.orders": 2_000, "sample.customers": 300, "sample.days": 40, "batch.folder": str(tmp_path)}
    settings = load_settings(root / "config" / "orders.toml", small)
    assert period(demo_settings(settings).sample)[1] == system_clock() // HOUR * HOUR
    texts = []
    for name, end in (("a", "2025-06-30T14"), ("b", "2025-06-30T16:00+02:00"), ("c", "2025-06-30T15")):
        made = demo_settings(settings, end)
        make_data(made, tmp_path / name)
        texts.append({p.name: p.read_bytes() for p in sorted((tmp_path / name).rglob("*.parquet"))})
        times = pq.read_table(tmp_path / name / "orders", columns=["order_date"])["order_date"].to_pylist()
        assert period(made.sample)[1] / 1000 - 86_400 < max(times).timestamp() < period(made.sample)[1] / 1000
    assert texts[0] == texts[1] != texts[2]


# --- overrides and help -----------------------------------------------------------------------------------------------

SAME = ["2025-01-01", "plain", "", "a=b", "1\nb=2", "/some/where", "{a = 1}"]


@pytest.mark.parametrize(
    "text, value",
    [
        ("4", 4),
        ("1_000", 1000),
        ("0.5", 0.5),
        ("true", True),
        ("'a'", "a"),
        ('["a", "b"]', ["a", "b"]),
        *[(text, text) for text in SAME],
    ],
)
def test_values_are_toml_or_text(text, value):
    assert parse_value(text) == value and parse_overrides([f"a.b={text}"]) == {"a.b": value}


@pytest.mark.parametrize("command", ["make-data", "ingest", "features", "describe", "demo"])
def test_help_has_examples(command):
    done = call(command, "--help")
    assert done.exit_code == 0
    examples = done.stdout.split("Examples:")[1]
    assert examples.count(f"fraud-poc {command}") >= 2
    for option in ("--config", "--set", "--json"):
        assert option in done.stdout


def test_version_and_no_command():
    from fraud_poc import __version__

    assert call("--version").stdout == f"fraud-poc {__version__}\n"
    assert "demo" in call().output and call().exit_code == 2


# --- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, remedy",
    [
        (["features", "--set", "batch.thread=4"], "batch.threads"),
        (["features", "--set", "batch.threads"], "section.key=value"),
        (["features", "--set", "threads=4"], "section.key=value"),
        (["features", "--set", "batch.threads=many"], "batch.threads"),
        (["features", "--set", 'features.rows=[\'Count(by="whom", over="1d")\']'], "whom"),
        (["ingest"], "--input"),
        (["ingest", "--input", "nowhere.csv"], "nowhere.csv"),
        (["features"], "fraud-poc ingest"),
        (["describe"], "fraud-poc ingest"),
        (["make-data"], "[sample]"),
        (["make-data", "--orders", "10"], "sample.orders"),
        (["demo"], "--input"),
    ],
    ids=" ".join,
)
def test_wrong_use_ends_with_2_and_a_remedy(payments, words, remedy):
    failed = call(*words, *payments)
    assert failed.exit_code == 2 and remedy in failed.stderr and not failed.stdout and "Traceback" not in failed.stderr
    failed = call(*words, *payments, "--json")
    reported = json.loads(failed.stdout)
    assert reported["ok"] is False and reported["exit_code"] == failed.exit_code == 2 and remedy in reported["error"]


def leaves(group, *path):
    "All commands that read settings, with words for what they require."
    for name, command in sorted(group.commands.items()):
        if hasattr(command, "commands"):
            yield from leaves(command, *path, name)
        elif any(option.name == "config" for option in command.params):
            required = [option for option in command.params if option.required]
            given = [[option.opts[0], "x"] if option.opts[0].startswith("-") else ["x"] for option in required]
            yield [*path, name, *[word for words in given for word in words]]


# a wrong row of the feature table -> what the message says
WRONG_ROWS = {
    'Count(by="whom", over="1d")': "by='whom' is not an entity: use one of who",
    'Mean("amuont", by="who", over="1d")': "column 'amuont' cannot be used by Mean: it takes amount",
    'Cuont(by="who", over="1d")': "no feature is called 'Cuont'",
    'Count(by="who", over="1x")': "'1x' is not a duration",
    'Count(by="who", over="90d")': "raise features.retention",
    'Count(by="who", over="7d", delay="x")': "'x' is not a duration",
    'Count(by="who", over="1d")': "stands in the table twice",
    "Count(": "never closed",
}


@pytest.mark.parametrize("words", list(leaves(typer.main.get_command(app))), ids=" ".join)
def test_every_command_checks_the_feature_rows_first(payments, tmp_path, words):
    line = 'Count(by="whom", over="1d")'
    rows = ["--set", f"features.rows=['Hour()', '{line}']"]
    failed = call(*words, *payments, *rows)
    assert failed.exit_code == 2 and "features.rows, row 2: by='whom'" in failed.stderr, failed.output
    reported = json.loads(call(*words, *payments, *rows, "--json").stdout)
    assert reported["command"].split() == words[: len(reported["command"].split())] and not reported["ok"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["payments.toml"], "nothing was begun"


@pytest.mark.parametrize("line", WRONG_ROWS)
def test_a_wrong_feature_row_is_named_with_its_number(payments, line):
    rows = ["--set", f"""features.rows=['Hour()', 'Count(by="who", over="1d")', '{line}', 'Night(']"""]
    failed = call("config", *payments, *rows)
    assert failed.exit_code == 2 and WRONG_ROWS[line] in failed.stderr and line in failed.stderr
    assert "features.rows, row 3: " in failed.stderr and "features.rows, row 4: " in failed.stderr


def test_wrong_configurations(payments, tmp_path):
    assert call("features", "--config", tmp_path / "none.toml").exit_code == 2
    (tmp_path / "payments.toml").write_text(PAYMENTS.replace("threads", "treads"))
    failed = call("features", *payments)
    assert failed.exit_code == 2 and "batch.treads" in failed.stderr and "payments.toml" in failed.stderr
    for words in (["features", "--quickly"], ["folly"], ["make-data", "--orders", "few"]):
        assert call(*words).exit_code == 2


def test_a_missing_column_says_what_was_found(payments, tmp_path):
    (tmp_path / "in.csv").write_text("id,at,whom,amount,fraud\n1,2025-01-01,ann,1,0\n")
    failed = call("ingest", *payments, "--input", tmp_path / "in.csv")
    assert failed.exit_code == 2 and "who" in failed.stderr and "whom" in failed.stderr


def test_failures_of_the_machine_and_defects_end_with_1(payments, tmp_path, monkeypatch):
    as_json("ingest", *payments, "--input", csv(tmp_path, *ROWS))
    import fraud_poc.features.batch as batch

    def fails(error):
        def compute(*_):
            error.add_note("features of 2 of 6 parts are complete")
            raise error

        monkeypatch.setattr(batch, "compute_features", compute)
        return call("features", *payments, "--json")

    full = fails(OSError(28, "No space left on device", "/some/file"))
    assert (
        full.exit_code == 1
        and "No space left" in full.stderr
        and "2 of 6" in full.stderr
        and "Traceback" not in full.stderr
    )
    assert json.loads(full.stdout)["notes"] == ["features of 2 of 6 parts are complete"]
    defect = fails(KeyError("oops"))
    assert defect.exit_code == 1 and "Traceback" in defect.stderr and "defect" in defect.stderr
    stopped = fails(KeyboardInterrupt())
    assert stopped.exit_code == 130 and "a log of" in stopped.stderr and "60 events" in stopped.stderr


def test_ctrl_c_in_a_shell(root, tmp_path):
    command = [
        sys.executable,
        "-c",
        "from fraud_poc.cli import main; main()",
        "make-data",
        "--json",
        "--orders",
        "3000000",
        "--config",
        str(root / "config" / "orders.toml"),
        "--folder",
        str(tmp_path / "raw"),
        "--set",
        f"batch.folder={tmp_path}",
    ]
    heard = lambda: signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a run in the background may have been told to ignore it
    run = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ) | {"PYTHONPATH": str(root)},
        preexec_fn=heard,
    )
    try:
        until(lambda: any(tmp_path.iterdir()), "the command has begun", run)
        run.send_signal(signal.SIGINT)
        out, err = run.communicate(timeout=LONG)
    finally:
        run.kill()
    assert run.returncode == 130, err
    reported = json.loads(out)
    assert reported["exit_code"] == 130 and "there is no log" in err and "Traceback" not in err
    assert not list(tmp_path.rglob("*.parquet")), "half of a sample is left"


HOSTILE = st.text(
    st.sampled_from("\x00\x07\x08\x0b\x1b\x7f\x85\x9b\u200b\u2028\u202e\u2066\ufeff\ud800[]/:\\")
    | st.characters(exclude_categories=()),
    max_size=30,
)


@given(HOSTILE, HOSTILE)
def test_text_from_data_is_shown_and_never_obeyed(text, other):
    "Every way to a terminal or a log: lines, titles, cells, answers, rows of the database, errors, JSON."
    answer = {
        "id": text,
        "action": "pass",
        "band": "low",
        "degraded": other or "down",
        "known_before": False,
        "reasons": [],
    }
    tables = [
        table_of(text, [text, other], [[text, other]]),
        answers_table([answer]),
        rows_table(text, [{"name": text, "words": [other, text], "more": {other: text}}]),
    ]
    screen = Screen(file=io.StringIO(), width=200, highlight=False)
    for shown in [*tables, text]:
        screen.print(shown)
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        with suppress(typer.Exit), ending("score", True, {}):
            raise KeyError(text, other)
    record = logging.makeLogRecord({"msg": text, "fields": {other: text}})
    for found in (screen.file.getvalue(), err.getvalue(), out.getvalue(), JsonLines().format(record)):
        assert all(one.isprintable() or one in "\n\t" or unicodedata.category(one) == "Zs" for one in found), found
    assert json.loads(out.getvalue())["error"] == f"KeyError: {KeyError(text, other)}"
    assert printable(printable(text)) == printable(text) and printable(text).count("\n") == 0


def test_nothing_reaches_a_terminal_by_another_door(root):
    raw = re.compile(r"(?<![\w.])(?:Console|print|secho|echo)\(|print_exc|sys\.std(?:out|err)\.write")
    found = {
        (path.stem, line.strip())
        for path in sorted((root / "fraud_poc").rglob("*.py"))
        for line in path.read_text().splitlines()
        if raw.search(line)
    }
    assert found == {
        ("cli", 'print(f"fraud-poc {__version__}")'),
        ("terminal", 'sys.stdout.write(json_line(result) + "\\n")'),
        ("terminal", "sys.stderr.write(printable(traceback.format_exc(), lines=True))"),
    }


HOLDS = """
import sys, time
from fraud_poc.core.processes import TERMINATED, exit_on_sigterm
from fraud_poc.live.redis_server import start_redis
with exit_on_sigterm(TERMINATED), start_redis(sys.argv[1]):
    time.sleep(1_000)
"""  # as a command at work that takes no signals itself
WRITES = "from fraud_poc.cli import main; main()"  # with `write-decisions`, which does


def starting(program: str, folder, root, terminal: int | None = None, ignored: bool = False) -> subprocess.Popen:
    "A process with a store of its own in a session of its own, on a terminal or not, as under nohup or not."

    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
        if terminal is not None:
            fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)

    sets = {"batch.folder": folder.parent, "live.redis_url": "", "database.url": ""}
    more = [str(folder)] if program == HOLDS else ["write-decisions", *options_of(root, sets)]
    place = subprocess.DEVNULL if terminal is None else terminal
    process = subprocess.Popen(
        [sys.executable, "-c", program, *more],
        env=dict(os.environ) | {"PYTHONPATH": str(root)},
        start_new_session=True,
        preexec_fn=prepare,
        stdin=place,
        stdout=place,
        stderr=place,
    )
    until(lambda: (folder / "server.lock").exists() and server_runs(folder), "the store runs", process)
    time.sleep(0.2)
    return process


@pytest.mark.parametrize("program", [HOLDS, WRITES], ids=["at work", "follows the log"])
@pytest.mark.parametrize("end", ["SIGINT", "SIGTERM", "SIGHUP", "twice", "the terminal is closed"])
def test_every_way_of_ending_a_command_stops_what_it_started(root, tmp_path, program, end):
    folder, ends = tmp_path / "redis", pty.openpty() if end == "the terminal is closed" else (None, None)
    process = starting(program, folder, root, ends[1])
    try:
        if ends[0] is not None:
            for one in ends:
                os.close(one)
        else:
            for number in {"twice": [signal.SIGHUP, signal.SIGTERM]}.get(end) or [getattr(signal, end)]:
                process.send_signal(number)
        code = ended(process)
    finally:
        process.kill()
    assert not server_runs(folder)
    assert ends[0] is not None or code in {0, 130 if end == "SIGINT" else 143, -signal.SIGINT if end == "SIGINT" else 0}


def test_a_command_under_nohup_outlives_its_terminal(root, tmp_path):
    process = starting(HOLDS, tmp_path / "redis", root, ignored=True)
    process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert process.poll() is None and server_runs(tmp_path / "redis")
    process.terminate()
    assert ended(process) == 143 and not server_runs(tmp_path / "redis")
