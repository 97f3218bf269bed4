"""The clock: what is stamped has the time of the clock that was chosen, in this process and in those that it starts."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime

import pytest
from conftest import NOW

from fraud_poc.core.events import CLOCK_SHIFT, clock_shift, system_clock

DAY = 86_400_000
AGE = (
    "import sys, time; from fraud_poc.core.events import system_clock; "
    "print(system_clock() - time.time_ns() // 1_000_000)"
)


def shifted(text: str, *command: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *command], env=os.environ | {CLOCK_SHIFT: text}, capture_output=True, text=True
    )


def test_the_tests_run_at_a_time_of_their_own():
    assert 0 <= system_clock() - NOW.timestamp() * 1000 < DAY


@pytest.mark.parametrize("text, ms", [("", 0), ("-400d", -400 * DAY), ("36h", 36 * 3_600_000), (" +90s ", 90_000)])
def test_a_process_can_be_given_a_time_of_its_own(monkeypatch, text, ms):
    monkeypatch.setenv(CLOCK_SHIFT, text)
    assert clock_shift() == ms and abs(int(shifted(text, "-c", AGE).stdout) - ms) < 60_000, (
        "the two looks at the clock may lie apart"
    )


def test_what_is_no_duration_is_refused_by_name():
    done = shifted("last year", "-c", AGE)
    assert done.returncode == 1 and f"environment variable {CLOCK_SHIFT}: 'last year' is not a duration" in done.stderr


def test_commands_stamp_the_time_of_their_process(tmp_path, root):
    sets = ["--config", str(root / "config" / "orders.toml"), "--set", f"batch.folder={tmp_path}", "--json"]
    for words in (["keys", "new", "shop", "--scope", "score"], ["keys", "list"]):
        done = shifted("-9000d", "-c", "from fraud_poc.cli import main; main()", *words, *sets)
        assert done.returncode == 0, done.stderr
    years = {datetime.fromtimestamp(key["created"] / 1000, UTC).year for key in json.loads(done.stdout)["keys"]}
    assert len(years) == 1 and 2000 <= years.pop() < NOW.year
