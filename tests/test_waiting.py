"""Waiting ends when something happens, when it cannot happen any more, or when nothing moves, and says which."""

import asyncio
import subprocess
import sys

import psutil
import pytest
from support.waiting import ended, in_time, line_of, until, until_so, watched


def python(code: str, **more) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-S", "-c", code], stdout=subprocess.PIPE, text=True, **more)


def test_what_happens_is_returned_and_what_does_not_is_named():
    looks = []

    def fourth():
        looks.append(1)
        if len(looks) < 3:
            raise OSError("not yet")
        return len(looks) > 3 and "four"

    assert until(fourth, "four looks", ignore=(OSError,)) == "four" and len(looks) == 4
    with pytest.raises(AssertionError, match="the moon falls: did not happen within 0.05 seconds"):
        until(lambda: False, "the moon falls", seconds=0.05)
    with pytest.raises(ZeroDivisionError):
        until(lambda: 1 / 0, "a defect is no reason to wait")


def test_a_loop_goes_on_while_something_is_waited_for():
    async def run():
        event = asyncio.Event()
        asyncio.get_running_loop().call_soon(event.set)

        async def there():
            return event.is_set() and "there"

        assert await until_so(there, "the event") == "there"
        with pytest.raises(AssertionError, match="the moon falls"):
            await until_so(lambda: False, "the moon falls", seconds=0.05)
        with pytest.raises(AssertionError, match="the answer: did not end"):
            await in_time(asyncio.Event().wait(), "the answer", 0.05)

    asyncio.run(run())


def test_a_process_that_ends_is_not_waited_for_any_longer(tmp_path):
    with open(log := tmp_path / "log", "w") as errors:
        process = python("import sys; print('ready'); sys.exit('no room')", stderr=errors)
    with process:
        assert line_of(process) == "ready"
        with pytest.raises(AssertionError, match="(?s)printed nothing more; its process ended with 1.*no room"):
            line_of(process, log)
        with pytest.raises(
            AssertionError,
            match="(?s)the service is ready: does not happen any more; its process ended with 1.*no room",
        ):
            until(lambda: False, "the service is ready", process, log)


def test_a_process_that_stays_is_named():
    with python("input()", stdin=subprocess.PIPE) as process:
        with pytest.raises(AssertionError, match=f"process {process.pid}: did not end within 0.05 seconds"):
            ended(process, seconds=0.05)
        with pytest.raises(AssertionError, match="printed nothing for 0.05 seconds"):
            line_of(process, seconds=0.05)
        process.kill()


def test_a_command_is_ended_when_it_is_quiet_and_not_when_it_is_slow(tmp_path):
    slow = "import time\nfor _ in range(12): print('step', flush=True); time.sleep(0.1)"
    done = watched([sys.executable, "-S", "-c", slow], quiet=1)
    assert done.returncode == 0 and done.stdout == "step\n" * 12
    quiet = (
        "import subprocess, sys\nprint(subprocess.Popen(['sleep', '600']).pid, flush=True)\n"
        "sys.stdin.close(); subprocess.run(['sleep', '600'])"
    )
    done = watched([sys.executable, "-S", "-c", quiet], quiet=1)
    first, last = done.stdout.splitlines()[0], done.stdout.splitlines()[-1]
    assert done.returncode == -9 and last == "stopped after 1 seconds without output"
    until(
        lambda: not psutil.pid_exists(int(first)) or psutil.Process(int(first)).status() == psutil.STATUS_ZOMBIE,
        "what it had started has ended too",
        ignore=(psutil.NoSuchProcess,),
    )
