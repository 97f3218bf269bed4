"""What a process loads when it starts: a scoring process nothing of training, a command only what it needs."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from test_bundle import save as save_model
from test_bundle import settings_in

ROOT = Path(__file__).resolve().parent.parent
# of scipy, numba itself loads the package for its version, and scipy.linalg when it first runs compiled code
TRAINING = [
    "pandas",
    "dask",
    "distributed",
    "matplotlib",
    "sklearn",
    "scipy.stats",
    "scipy.special",
    "xgboost",
    "IPython",
]
SERVED_WITHOUT = [*TRAINING, "pyarrow"]
HEAVY = [*SERVED_WITHOUT, "numpy", "numba", "sqlalchemy", "fastapi"]
HELP_TO_TYPER = 2  # most CPU time of `--help`, as a multiple of importing typer and rich; 1.3 when it was measured


def loaded_after(code: str, names: list[str]) -> list[str]:
    "Which of these modules a fresh process has loaded after running some code."
    report = f"{code}\nimport json, sys\nprint(json.dumps([name for name in {names!r} if sys.modules.get(name)]))"
    done = subprocess.run([sys.executable, "-c", report], cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("module", ["fraud_poc.app", "fraud_poc.service.scoring"])
def test_a_scoring_process_loads_nothing_of_training(module):
    assert loaded_after(f"import {module}", SERVED_WITHOUT) == []


def test_the_command_that_serves_waits_for_it_without_what_trains():
    code = """
from rich.console import Console
from fraud_poc.cli import announced_when_ready
with announced_when_ready(Console(quiet=True)):
    pass"""
    assert loaded_after(code, SERVED_WITHOUT) == []


def test_a_decision_writer_loads_nothing_of_training():
    assert loaded_after("import fraud_poc.desk.writer", TRAINING) == []


def test_a_decision_writer_explains_without_scikit_learn(tmp_path):
    job = json.dumps({"settings": settings_in(tmp_path).model_dump_json(), "url": ""})
    code = f"""
import io, sys
from fraud_poc.desk import writer, writer_process
writer.run_writer = lambda *words, until: __import__("xgboost")
sys.stdin = io.StringIO({job!r})
writer_process.child_main()"""
    assert loaded_after(code, ["xgboost", "sklearn", "pandas"]) == ["xgboost"]


def test_an_engine_starts_and_scores_without_what_trains(tmp_path):
    "The compiled trees were proved when the model was saved; the reasons of a decision need XGBoost, and load it then."
    settings = settings_in(tmp_path)
    save_model(settings)
    code = f"""
import json
import numpy as np
import fraud_poc.app
from fraud_poc.core.settings import Settings
from fraud_poc.live.decide import default_engine
model = default_engine(Settings.model_validate(json.loads({settings.model_dump_json()!r}))).model
assert model.scorer.compiled and 0 < model.scorer.score(np.zeros(len(model.bundle.names), np.float32)) < 1"""
    assert loaded_after(code, SERVED_WITHOUT) == []


def test_the_command_line_loads_only_what_it_shows():
    assert loaded_after("import fraud_poc.cli", HEAVY) == []


def cpu_seconds(code: str, *words: str) -> tuple[float, str]:
    "What a fresh Python process takes for some code, and what it prints."
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def test_help_is_quick():
    """The time of typer alone, measured in turn, is the scale: on a busy machine everything takes longer.

    The fastest of three counts.
    """
    used, alone = [], []
    for _ in range(3):
        seconds, text = cpu_seconds("from fraud_poc.cli import main; main()", "--help")
        used.append(seconds)
        alone.append(cpu_seconds("import typer.rich_utils")[0])
    assert "ingest" in text and "serve" in text
    assert min(used) <= HELP_TO_TYPER * min(alone), (
        f"--help took {min(used):.2f} CPU seconds, typer alone {min(alone):.2f}"
    )
