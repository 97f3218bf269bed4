"""Every command line of docs/operations.md is run, in the order of the page, by a shell and on one small domain."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.waiting import QUIET, until

from fraud_poc.core.processes import free_port
from fraud_poc.core.settings import load_settings
from fraud_poc.data.log import read_manifest, read_part
from fraud_poc.service.client import is_ready

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
from drill import Domain  # noqa: E402

PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
LINES = [line for block in BLOCKS for line in block.replace("\\\n", " ").splitlines() if line.strip()]
BACKUP = re.compile(r"\d{8}T\d{9}Z")  # the name of a backup, its time
DRILLS = [line for line in LINES if line.startswith("python benchmarks/")]


class Machine:
    "A folder with the settings and the data of a domain, and a shell in it."

    def __init__(self, home: Path):
        self.home, self.serving = home, None
        Domain(home / "data", 300, 1_200, **{"model.trees": 10})
        self.port, bin = free_port(), home / "bin"
        text = (ROOT / "config" / "orders.toml").read_text(encoding="utf-8")
        for folder in ("config", "bin", "backups", "keys"):
            (home / folder).mkdir()
        self.config = home / "config" / "orders.toml"
        self.config.write_text(f"{text}\n[service]\nport = {self.port}\n")
        (bin / "fraud-poc").write_text(
            f"#!/bin/sh\nexec {sys.executable} -P -c 'from fraud_poc.cli import main; main()' \"$@\"\n"
        )
        (bin / "fraud-poc").chmod(0o700)
        self.environment = os.environ | {"PATH": f"{bin}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
        settings = load_settings(self.config)
        self.folder = settings.batch.folder
        part = read_manifest(self.folder)["parts"][0]["name"]
        customers = read_part(self.folder, "events", part, ["customer_id"])["customer_id"].unique().to_pylist()
        (home / "customer.txt").write_text(f"{customers[0]}\n")
        (home / "erased.txt").write_text(f"{customers[1]}\n{customers[2]}\n")

    def run(self, line: str, typed: str = "") -> str:
        "Run a line; what it prints."
        done = subprocess.run(
            ["bash", "-c", line], cwd=self.home, env=self.environment, input=typed, capture_output=True, text=True,
            timeout=QUIET,
        )  # fmt: skip
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        return done.stdout

    def serve(self, line: str) -> None:
        "Start the service, and wait until it is ready."
        with open(self.home / "serve.log", "wb") as log:
            self.serving = subprocess.Popen(
                shlex.split(line), cwd=self.home, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        until(lambda: self.serving.poll() is not None or is_ready(f"http://127.0.0.1:{self.port}"), "it is ready")
        assert self.serving.poll() is None, (self.home / "serve.log").read_text()[-2000:]

    def stop(self) -> None:
        "Stop the service, if it runs."
        if self.serving:
            self.serving.send_signal(signal.SIGTERM)
            assert self.serving.wait(QUIET) == 0, (self.home / "serve.log").read_text()[-2000:]
            self.serving = None


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    found = Machine(tmp_path_factory.mktemp("machine"))
    yield found
    if found.serving:
        found.serving.kill()
        found.serving.wait()


def test_every_command_of_the_page_works_in_its_order(machine):
    machine.run("fraud-poc keys new shop --scope score")
    for line in (re.split(r"\s+#", line)[0] for line in LINES if line not in DRILLS):
        line = line.replace("/mnt/", f"{machine.home}/")
        if name := BACKUP.search(line):
            line = line.replace(name[0], max(path.name for path in (machine.home / "backups" / "orders").iterdir()))
        if line.startswith("fraud-poc restore"):
            machine.stop()
            shutil.move(machine.folder, machine.home / "lost")  # what it is for
        if line == "fraud-poc serve":
            machine.serve(line)
        else:
            machine.run(line, typed="correct horse battery\n" * 2 if "accounts new" in line else "")
    machine.stop()
    assert (machine.folder / "restored.json").is_file()
    assert "shop-2" in machine.run("fraud-poc keys list --json")


def test_lines_are_found():
    commands = {line.split()[1] for line in LINES if line.startswith("fraud-poc ")}
    assert {"backup", "verify-backup", "restore", "serve", "recover", "verify-log", "keys", "forget"} <= commands
    assert len(DRILLS) >= 5


@pytest.mark.parametrize("line", DRILLS)
def test_a_drill_of_the_page_is_run_by_the_tests_and_understands_its_options(line):
    name, *words = shlex.split(line)[1:]
    assert f'run("{Path(name).stem}"' in (ROOT / "tests" / "test_drills.py").read_text(encoding="utf-8")
    text = (ROOT / name).read_text(encoding="utf-8")
    assert all(f'"{word}"' in text for word in words if word.startswith("--")), line
