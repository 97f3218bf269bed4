"""What a process loads when it starts: a scoring process nothing of training, the command line only what a command needs."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# numba reads the version of scipy, so a bare `scipy` is loaded; none of its parts is
TRAINING = ["pandas", "dask", "distributed", "matplotlib", "sklearn", "scipy.sparse", "scipy.stats", "scipy.linalg"]
TRAINING += ["scipy.special", "xgboost", "IPython"]
HEAVY = [*TRAINING, "pyarrow", "numpy", "numba", "sqlalchemy", "fastapi"]
HELP_CPU_S = 0.5  # 0.3 on a machine that is not busy


def loaded_after(code: str, names: list[str]) -> list[str]:
    "Which of these modules a fresh process has loaded after running some code."
    report = f"{code}\nimport json, sys\nprint(json.dumps([name for name in {names!r} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", report], cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("module", ["fraud_poc.app", "fraud_poc.service.scoring"])
def test_a_scoring_process_loads_nothing_of_training(module):
    assert loaded_after(f"import {module}", TRAINING) == []


def test_the_command_line_loads_only_what_it_shows():
    assert loaded_after("import fraud_poc.cli", HEAVY) == []


def test_help_is_quick():
    "The fastest of three: other programs may use the machine."
    used = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-c", "from fraud_poc.cli import main; main()", "--help"]
        said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert "ingest" in said and "serve" in said
    assert min(used) <= HELP_CPU_S, f"`fraud-poc --help` took {min(used):.2f} CPU seconds"
