"""Instructions: each address and each command that is printed, or is on a page or in a help text, is tried."""

import ast
import asyncio
import errno
import io
import itertools
import json
import os
import re
import shlex
from pathlib import Path

import httpx
import pytest
import typer
from rich.console import Console
from support.command_line import call
from support.scoring_worker import settings_in, small_engine
from test_docs import PAGES
from typer.core import TyperCommand, TyperGroup

from fraud_poc.app import with_desk
from fraud_poc.cli import app as command_line
from fraud_poc.core.database import open_database
from fraud_poc.core.reading import FieldError
from fraud_poc.core.settings import load_settings
from fraud_poc.core.terminal import error_text, parse_overrides, table_of
from fraud_poc.desk_commands import RowFaults, rows_table
from fraud_poc.ops.feed import create_feed
from fraud_poc.service.http import create_app

ROOT = Path(__file__).resolve().parent.parent
COMPOSE = (ROOT / "docker" / "compose.yml").read_text(encoding="utf-8")
READ = {name: text for name, text in PAGES.items() if name not in ("docs/glossary.md", "docs/benchmarks.md")} | {
    "docker/compose.yml": COMPOSE
}
CODE = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in sorted((ROOT / "fraud_poc").rglob("*.py"))
}
OTHERS = ("8888", "8787")  # ports of JupyterLab and of Dask
METHODS = "GET|POST|DELETE"

# --- addresses --------------------------------------------------------------------------------------------------------


def addresses() -> set[tuple[str, str, str, str]]:
    "Where each stands; port, method and path."
    found = set()
    for name, text in READ.items():
        urls = re.findall(r"(?:https?://)?(?:localhost|127\.0\.0\.1):(\d+)(/[\w/.-]*)?", text)
        found |= {(name, port, "", path.rstrip(".") or "/") for port, path in urls if port not in OTHERS}
        routes = re.findall(rf"`(?:({METHODS}) )?(/[a-z][a-z/]*)`", text)
        found |= {(name, "8100" if path in FEED_PATHS else "8000", method, path) for method, path in routes}
    for name, text in CODE.items():
        found |= {(name, "8000", "", path) for path in re.findall(r"\{address\}(/[a-z/]+)", text)}
    return found


FEED_PATHS = ("/register", "/registered")


@pytest.fixture(scope="module")
def applications(tmp_path_factory):
    "The applications behind the default ports: the whole service and the feed."
    settings = settings_in(tmp_path_factory.mktemp("instructions"))
    assert (settings.service.port, settings.feed.port) == (8000, 8100)
    database, engine = open_database(settings), small_engine(settings)
    service = with_desk(create_app(settings, engine, secret=bytes(32), database=database), database)
    yield {"8000": service, "8100": create_feed(settings)}
    database.dispose()


@pytest.mark.parametrize(("where", "port", "method", "path"), sorted(addresses()))
def test_an_address_leads_somewhere(applications, where, port, method, path):
    "An open page is shown, also after a redirect; what asks for a key or for a body exists."

    async def statuses_of(methods: list[str]) -> list[int]:
        transport = httpx.ASGITransport(applications[port])
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", follow_redirects=True) as client:
            return [(await client.request(way, path)).status_code for way in methods]

    statuses = asyncio.run(statuses_of([method] if method else ["GET", "POST"]))
    assert set(statuses) & {200, 401, 422, 503 if path == "/readyz" else 200}, (
        f"{where}: {method} {path} answers {statuses}"
    )


def test_addresses_are_found():
    found = {(where, path) for where, _, _, path in addresses()}
    assert {
        ("README.md", "/desk"),
        ("README.md", "/score"),
        ("fraud_poc/cli.py", "/desk"),
        ("fraud_poc/cli.py", "/docs"),
        ("docs/operations.md", "/registered"),
        ("docker/compose.yml", "/readyz"),
    } <= found


# --- commands ---------------------------------------------------------------------------------------------------------

STOPS = ("|", "||", "&&", "&", ";", ">", "<")
USAGE = typer.BadParameter.__mro__[1]  # wrong use, of click or of typer's own copy of it
ROOT_COMMAND = typer.main.get_command(command_line)


def leaves(command: TyperGroup | TyperCommand, *words: str) -> dict[tuple[str, ...], TyperGroup | TyperCommand]:
    "All commands by the words that call them."
    if not isinstance(command, TyperGroup):
        return {words: command}
    return {
        key: leaf for name, part in command.commands.items() for key, leaf in leaves(part, *words, name).items()
    } | {words: command}


def words_of(line: str) -> list[list[str]]:
    "The calls of `fraud-poc` in a line of a shell, without what stands around them."
    found, words = [], shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
    words.whitespace_split = True
    for stop, part in itertools.groupby(words, lambda word: word in STOPS):
        part = list(part)
        if not stop and "fraud-poc" in part:
            found.append(part[part.index("fraud-poc") + 1 :])
    return found


def texts_of(code: str) -> list[str]:
    "Literal texts of a module; what is filled in is a word."
    tree = ast.parse(code)
    parts = lambda node: "".join(v.value if isinstance(v, ast.Constant) else "X" for v in node.values)
    plain = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return plain + [parts(node) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]


def whole_commands() -> set[tuple[str, str]]:
    "Commands to be copied: in the blocks of pages and the examples of help."
    found = set()
    for name, text in READ.items():
        comment = r"\s{3,}" if name.endswith(".yml") else r"\s+#"
        blocks = re.findall(r"^```.*?^```$", text, re.MULTILINE | re.DOTALL)
        for block in [*blocks, *re.findall(r"^#   .*$", text, re.MULTILINE)]:
            lines = block.replace("\\\n", " ").splitlines()
            commands = [re.sub(r"^[#$ ]+", "", line) for line in lines if re.match(r"[#$ ]*fraud-poc ", line)]
            found |= {(name, re.split(comment, command)[0]) for command in commands}
    for key, command in leaves(ROOT_COMMAND).items():
        for line in (command.epilog or "").splitlines():
            line = line.removeprefix("First steps: ")
            if "fraud-poc" in line:
                found.add((" ".join(["help of", *key]), line))
    return found


def named_commands() -> set[tuple[str, str]]:
    "Commands that are named in running text and in messages, perhaps without their arguments."
    texts = [(name, text) for name, text in READ.items()]
    texts += [(name, text) for name, code in CODE.items() for text in texts_of(code)]
    found = set()
    for name, text in texts:
        prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
        found |= {(name, re.sub(r"\s+", " ", command)) for command in re.findall(r"`(fraud-poc [^`]+)`", prose)}
    return found


def parse(words: list[str]) -> tuple[str, dict]:
    "The command that words call, and its parameters; an error of `USAGE` when it does not understand them."
    command, name = ROOT_COMMAND, "fraud-poc"
    with typer.Context(ROOT_COMMAND, info_name=name) as context:
        while isinstance(command, TyperGroup) and words:
            name, command, words = command.resolve_command(context, words)
        return name, {} if isinstance(command, TyperGroup) else command.make_context(name, list(words)).params


def check_settings(parameters: dict) -> None:
    "The file of settings is there, and knows what --set names."
    config = Path(parameters.get("config") or "config/orders.toml")
    shipped = ROOT / config if config.name != "mine.toml" else ROOT / "config" / "orders.toml"
    load_settings(shipped, parse_overrides(parameters.get("overrides")))


@pytest.mark.parametrize(("where", "line"), sorted(whole_commands()))
def test_a_command_to_copy_is_understood(where, line):
    calls = words_of(line)
    assert calls, f"{where}: {line}"
    for words in calls:
        _, parameters = parse(words)
        check_settings(parameters)


@pytest.mark.parametrize(("where", "line"), sorted(named_commands()))
def test_a_command_that_is_named_is_understood(where, line):
    for words in words_of(line):
        try:
            _, parameters = parse(words)
        except USAGE as error:
            assert type(error).__name__ == "MissingParameter", f"{where}: {line}: {error}"
            continue
        check_settings(parameters)


def test_commands_are_found_and_wrong_ones_are_not_understood():
    whole, named = whole_commands(), named_commands()
    assert {"README.md", "docs/guide.md", "help of serve", "docker/compose.yml"} <= {where for where, _ in whole}
    assert len(whole) > 60 and len(named) > 60
    assert words_of("head x | fraud-poc score - --json > y && fraud-poc serve") == [["score", "-", "--json"], ["serve"]]
    for line in ("fraud-poc fly", "fraud-poc serve --fast", "fraud-poc score", "fraud-poc keys make shop"):
        with pytest.raises(USAGE):
            parse(words_of(line)[0])


@pytest.mark.parametrize(
    ("where", "target"),
    sorted(
        {(name, target) for name, text in READ.items() for target in re.findall(r"(?<![\w-])make ([a-z]+)\b", text)}
    ),
)
def test_targets_of_make_exist(where, target):
    "In prose, too: a page writes of `make` only where it means a target."
    text = READ[where]
    if re.search(rf"(?:`|^|\$ )make {target}\b", text, re.MULTILINE):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE), (where, target)


# --- messages ---------------------------------------------------------------------------------------------------------

WRONG_SETTINGS = [
    ("service.port=abc", "service.port: must be a whole number (found 'abc')"),
    ("service.port=1.5", "service.port: must be a whole number"),
    ("policy.churn_cost=-1", "policy.churn_cost: must be at least 0 (found -1)"),
    ("policy.review_delay_cost=50", "policy: policy.review_delay_cost 50 is above policy.churn_cost 20"),
    ("policy.recovery_share=2", "policy.recovery_share: must be at most 1"),
    ("columns.entities=customer_id", "columns.entities: must be a list"),
    (
        "columns.time_format=soon",
        "columns.time_format: must be 'iso', 'epoch_s', 'epoch_ms', 'epoch_us', 'epoch_ns' or 'index'",
    ),
    ("domain.name=A B", "domain.name: must match"),
    ("servce.port=1", "did you mean service.port"),
    ("port=1", "section.key=value"),
    ("service.prt=1", "did you mean service.port"),
    ("shop.port=1", "did you mean feed.port or service.port"),
    ("service.colour=1", "[service] has "),
    ("shop.colour=1", "`fraud-poc config` lists all"),
]


@pytest.mark.parametrize(("setting", "words"), WRONG_SETTINGS)
def test_a_wrong_setting_is_told_in_words(setting, words):
    failed = call("config", "--set", setting, "--config", ROOT / "config" / "orders.toml")
    assert failed.exit_code == 2 and words in failed.stderr and len(failed.stderr) < 400, failed.stderr
    assert not re.search(r"Value error|Input should|pydantic|acceptance\.bootstrap", failed.stderr)


def test_a_wrong_setting_of_a_file_is_told_in_words(tmp_path):
    own = tmp_path / "mine.toml"
    own.write_text((ROOT / "config" / "orders.toml").read_text().replace("[sample]", "[sample]\nsede = 1"))
    failed = call("config", "--config", own)
    assert failed.exit_code == 2 and "sample.sede: there is no such setting: did you mean sample.seed?" in failed.stderr


def unlucky(tmp_path: Path) -> dict[str, Path]:
    "Paths at which nothing can be read."
    (tmp_path / "file.csv").write_text("order,fraud\n")
    return {"missing": tmp_path / "none.csv", "folder": tmp_path, "below a file": tmp_path / "file.csv" / "x.csv"}


@pytest.mark.parametrize("case", ["missing", "folder", "below a file"])  # a folder is what `ingest` reads
@pytest.mark.parametrize("command", ["score", "labels", "ingest"])
def test_a_file_that_cannot_be_read_is_told_in_words(tmp_path, command, case):
    path = unlucky(tmp_path)[case]
    if (command, case) == ("ingest", "folder"):
        path = tmp_path / "*.json"
    words = ["--input", path] if command == "ingest" else [path]
    options = ["--config", ROOT / "config" / "orders.toml", "--set", f"batch.folder={tmp_path}/b"]
    failed = call(command, *words, *options)
    assert failed.exit_code in (1, 2) and str(path) in failed.stderr and "Traceback" not in failed.stderr
    assert not re.search(r"Errno|\[[0-9]+\]", failed.stderr), failed.stderr
    assert re.search("check the path|name a file", failed.stderr), failed.stderr


def test_every_error_of_the_system_is_told_without_its_number(tmp_path):
    for number in errno.errorcode:
        text = error_text(OSError(number, os.strerror(number), "some/file"))
        assert text.startswith("some/file: ") and "Errno" not in text
    assert error_text(OSError("in our words")) == "in our words"


def test_a_wrong_column_is_named_once(tmp_path):
    options = ["--config", ROOT / "config" / "orders.toml", "--set", f"batch.folder={tmp_path}/b"]
    head, *rows = (ROOT / "examples" / "orders.csv").read_text().splitlines()
    (tmp_path / "in.csv").write_text("\n".join([head.replace("order_id", "order_no"), *rows]))
    failed = call("score", tmp_path / "in.csv", *options)
    assert failed.exit_code == 2 and failed.stderr.count("order_no") == 1
    assert f"all {len(rows)} orders" in failed.stderr


def test_a_fault_of_many_rows_is_printed_for_a_few_and_counted():
    screen = Console(file=io.StringIO(), width=40, force_jupyter=False)
    faults = RowFaults(screen)
    for row in range(1, 1_001):
        faults.add(row, FieldError("order", "field is missing", "missing"))
    faults.add(1_001, FieldError("fraud", "is neither yes nor no", "label"))
    faults.end()
    lines = screen.file.getvalue().splitlines()
    assert len(lines) == 5 and lines[-1] == "and 997 more rows, order: field is missing"
    assert lines[3].startswith("row 1001, fraud")


def test_labels_for_a_store_without_states_name_the_remedy(tmp_path):
    (tmp_path / "in.csv").write_text("order,fraud\na,1\n")
    options = ["--config", ROOT / "config" / "orders.toml", "--set", f"batch.folder={tmp_path}/b"]
    failed = call("labels", tmp_path / "in.csv", *options)
    assert failed.exit_code == 2 and "fraud-poc prepare-db" in failed.stderr and "Traceback" not in failed.stderr


def test_forgetting_a_customer_who_is_not_known_says_so(tmp_path):
    options = ["--config", ROOT / "config" / "orders.toml", "--set", f"batch.folder={tmp_path}/b"]
    done = call("forget", "--customer", "nobody-1", "--yes", *options, "--json")
    assert done.exit_code == 0 and "no order of this customer is known" in json.loads(done.stdout)["nothing_done"]
    assert "check the value" in done.stderr and "bring" not in done.stderr


@pytest.mark.parametrize("width", [20, 40, 59, 60, 80, 120])
def test_tables_break_no_word_on_a_narrow_terminal(width):
    rows = [["average precision on later days", "0.457", "1,234,567"], ["AUC ROC", "0.932", "12"]]
    for table in (
        table_of("steps", ["step", "value", "rows a second"], rows),
        table_of("made", ["", ""], [row[:2] for row in rows]),
        rows_table("keys", [{"name": "shop", "scopes": ["labels", "score"], "created": 1_751_000_000_000}]),
    ):
        screen = Console(file=io.StringIO(), width=width, force_jupyter=False)
        screen.print(table)
        text = screen.file.getvalue()
        words = [word for column in table.columns for cell in column.cells for word in str(cell).split()]
        assert [word for word in words if word not in text] == []
        assert all(len(line) <= width for line in text.splitlines())


def test_no_password_stands_on_a_command_line():
    commands = whole_commands() | named_commands()
    assert [line for _, line in commands if re.search(r"://[^ ]*:[^ ]*@|password=", line)] == []
