"""Every command of docs/operations.md is run as it stands there, in its order, on a small domain."""

import re
import shlex
import shutil
import sys
import tomllib
from pathlib import Path

import pytest
from support.command_line import call
from support.scored import moment_between, score_some

from fraud_poc.core.settings import load_settings
from fraud_poc.data.propose import toml_value
from fraud_poc.desk.writer import run_writer
from fraud_poc.ops.erasure_plan import ERASURES
from fraud_poc.ops.forget import forget
from fraud_poc.service.client import ServiceClient

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
from drill import Domain, serving  # noqa: E402

PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
BACKUPS, SECRETS = "/mnt/backups/orders", "/mnt/keys/orders.json"  # where the page has them
LIVE, HISTORY = 60, 1_200  # orders
# Commands within sentences that are not in a block of commands: where each is run
ELSEWHERE = {
    "fraud-poc collect": "test_commands.py",
    "fraud-poc prepare-db": "test_commands.py",
    "fraud-poc prepare-db --trim": "test_commands.py",
    "fraud-poc write-decisions": "test_commands.py",
    "fraud-poc feed": "test_feed.py",
    "redis-cli REPLICAOF NO ONE": "test_replicas.py",
    "pytest tests/test_access.py": "test_access.py",
    "python benchmarks/crash.py": "test_drills.py",
    "python benchmarks/restore.py": "test_drills.py",
    "python benchmarks/failover.py": "test_drills.py",
    "python benchmarks/doors.py": "test_drills.py",
    "python benchmarks/power.py": "test_drills.py",
}
NOT_RUN = {
    "python benchmarks/upgrade.py",  # needs the commits of an earlier version
    "python benchmarks/backup.py",  # takes half an hour; a small backup under load is in test_backup.py
}


def commands_of(page: str) -> list[str]:
    "The commands in blocks of a page, without their comments."
    blocks = re.findall(r"^```sh\n(.*?)^```", page, re.M | re.S)
    return [line.split("  #")[0].strip() for block in blocks for line in block.splitlines() if line.strip()]


def inline_commands(page: str) -> set[str]:
    "The commands within sentences, without the options of benchmarks."
    prose = re.sub(r"^```sh\n.*?^```", "", page, flags=re.M | re.S)
    found = {" ".join(text.split()) for text in re.findall(r"`([^`]+)`", prose)}
    found = {text for text in found if re.match(r"(fraud-poc|python|pytest|redis-cli) ", text)}
    return {" ".join(text.split()[:2]) if text.startswith("python ") else text for text in found}


class System:
    "A domain at the place where the commands expect it by default, below the working directory."

    def __init__(self, folder: Path, root: Path):
        self.folder, self.data = folder, folder / "data" / "orders"
        shutil.copytree(root / "config", folder / "config")
        self.domain = Domain(folder / "data", LIVE, HISTORY, **{"model.trees": 10})
        self.config = folder / "config" / "orders.toml"
        values = tomllib.loads(self.config.read_text(encoding="utf-8"))
        for name, value in self.domain.changes.items():  # in the file, so that the commands need no options
            section, key = name.split(".")
            values.setdefault(section, {})[key] = value
        lines = [
            line
            for section, entries in values.items()
            for line in (f"[{section}]", *(f"{key} = {toml_value(value)}" for key, value in entries.items()))
        ]
        self.config.write_text("\n".join(lines), encoding="utf-8")
        self.sent = 0

    @property
    def settings(self):
        return load_settings(self.config)

    def score(self, count: int) -> None:
        "Decide the next orders."
        score_some(self.domain, self.sent + count, self.sent)
        self.sent += count

    def run(self, command: str) -> str:
        "Output of a command that succeeds, in one line and without the rules of tables."
        words = [
            word.replace(BACKUPS, str(self.folder / "backups")).replace(SECRETS, str(self.folder / "keys.json"))
            for word in shlex.split(command)
        ]
        typed = ""
        if "<" in words:
            typed = (self.folder / words[-1]).read_text()
            words = words[: words.index("<")]
        if words[0] == "cp":
            shutil.copy(*words[1:])
            return ""
        done = call(*words[1:], typed=typed)
        assert done.exit_code == 0, (command, done.output)
        return re.sub(r"[│\s]+", " ", done.output)

    def serve(self) -> None:
        "The service scores one more order."
        with serving(self.domain, self.folder / "serve.log", root=self.folder) as (address, _):
            client = ServiceClient(address, self.domain.key)
            assert client.score(self.domain.orders(self.sent + 1)[self.sent][1])["degraded"] is None
        self.sent += 1

    def lose(self, count: int) -> None:
        "Decide orders that the database has and the store loses: its files are those of before."
        shutil.copytree(self.data / "redis", self.folder / "redis_before")
        self.score(count)
        run_writer(self.settings, to_end=True)
        shutil.rmtree(self.data / "redis")
        (self.folder / "redis_before").rename(self.data / "redis")
        self.score(1)  # a new timeline begins

    def move_away(self) -> None:
        "The data folder is empty, as on a new machine; `last_erasures` is a list of the lost system, if it had one."
        erasures = self.data / ERASURES
        self.last_erasures = erasures.read_text() if erasures.exists() else ""
        shutil.rmtree(self.data)

    def moment_between_backups(self) -> str:
        "A moment between two new backups, ISO; the system is gone then."
        self.score(2)
        assert call("backup", self.folder / "backups", "--secrets", self.folder / "keys.json").exit_code == 0
        self.score(2)
        moment = moment_between()
        self.score(2)
        assert call("backup", self.folder / "backups").exit_code == 0
        self.move_away()
        return moment


@pytest.fixture
def system(root, tmp_path, monkeypatch):
    made = System(tmp_path, root)
    monkeypatch.chdir(tmp_path)
    return made


def test_the_commands_of_the_page_do_what_it_says(system):
    """Each block in turn; what has to happen before a command, and what it is to show, stands beside it.

    The time in the name of a backup and that of `--to` are those of this run.
    """
    commands = iter(commands_of(PAGE))

    def runs(command: str, *shown: str, old: str = "", new: str = "") -> None:
        "The next command of the page is this one, succeeds and shows what is expected."
        assert next(commands) == command
        printed = system.run(command.replace(old, new) if old else command)
        for words in shown:
            assert words in printed, (command, printed)

    backup, restore = f"backup {BACKUPS} --secrets {SECRETS}", f"restore {BACKUPS} --secrets {SECRETS}"
    system.score(3)
    system.lose(4)
    runs("fraud-poc recover", "4")
    runs("fraud-poc recover --yes")
    runs("fraud-poc verify-log")

    runs(f"fraud-poc {backup}")
    runs(f"fraud-poc verify-backup {BACKUPS}")
    customer = system.domain.orders(1)[0][1]["customer_id"]
    assert forget(system.settings, customer)["orders"] > 0
    made = next((system.folder / "backups").glob("2*")).name
    text = system.config.read_text()
    system.config.unlink()
    named = f"cp {BACKUPS}/20251105T103000000Z/settings/orders.toml config/orders.toml"
    runs(named, old="20251105T103000000Z", new=made)
    assert system.config.read_text() == text
    system.move_away()
    runs(f"fraud-poc {restore}")
    assert next(commands) == "fraud-poc serve"
    system.serve()

    (system.data / ERASURES).write_text(system.last_erasures)  # the list of the lost system, put in place of its own
    runs("fraud-poc forget --list data/orders/erasures.json --yes", "pending 1 customers 1 ")

    shutil.rmtree(system.folder / "backups")
    moment = system.moment_between_backups()
    runs(f"fraud-poc {restore} --to 2025-11-05T10:30:00Z", old="2025-11-05T10:30:00Z", new=moment)
    system.run("fraud-poc features")

    runs(f"fraud-poc {backup}")
    runs(f"fraud-poc verify-backup {BACKUPS}")

    assert call("keys", "new", "shop", "--scope", "score").exit_code == 0
    runs("fraud-poc keys new shop-2 --scope score --scope labels", "fp_")
    runs("fraud-poc keys list", "shop-2")
    runs("fraud-poc keys revoke shop")

    assert next(commands) == "fraud-poc accounts new alex --role analyst"
    assert call("accounts", "new", "alex", "--role", "analyst", typed="a sentence of theirs\n").exit_code == 0
    runs("fraud-poc accounts list", "alex")
    runs("fraud-poc audit list --last 20", "key made", "shop-2")
    runs("fraud-poc audit verify", "intact")

    (system.folder / "customer.txt").write_text(system.domain.orders(6)[5][1]["customer_id"])
    runs("fraud-poc forget --customer - --yes < customer.txt")
    assert list(commands) == []


def test_commands_in_sentences_are_run_elsewhere():
    blocks = {command.split(" /")[0].split(" --")[0] for command in commands_of(PAGE)}
    here = blocks | {"fraud-poc features"}
    assert inline_commands(PAGE) - here == set(ELSEWHERE) | NOT_RUN
    for command, file in ELSEWHERE.items():
        words, text = command.split()[1:], (ROOT / "tests" / file).read_text()
        assert all(word.endswith(file) or f'"{Path(word).stem}"' in text for word in words), command
