"""How tests wait: all limits are here.

They are there against hanging, not against slowness, so that a busy machine fails no test.

A test waits for an event: `until` something is so, until a process has `ended`, for a `line_of` its output. What runs
for minutes is ended when it makes no progress, that is, when it says nothing for a long time (`watched`), and not
because it is slow. FRAUD_POC_TEST_PATIENCE is a factor on all limits.
"""

import asyncio
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

PATIENCE = float(os.environ.get("FRAUD_POC_TEST_PATIENCE", 1))
LONG = (
    120 * PATIENCE
)  # seconds until what should happen by itself counts as hanging: also of one request, of one process that shall end
QUIET = 300 * PATIENCE  # seconds that a command may run without output
STORE = f"{round(LONG)}s"  # setting live.store_timeout where a test is not about a slow store
CLICK = 1000 * LONG  # milliseconds, as a browser counts
STEP = 0.02  # seconds between two looks


def failure(what: str, why: str, process: subprocess.Popen | None = None, log: Path | None = None) -> AssertionError:
    "The failure of a wait, with the end of what the process has printed."
    ended = (
        f"; its process ended with {process.returncode}" if process is not None and process.poll() is not None else ""
    )
    end = f":\n{log.read_text(errors='replace')[-5_000:]}" if log and log.exists() else ""
    return AssertionError(f"{what}: {why}{ended}{end}")


def until(
    condition: Callable[[], object],
    what: str,
    process: subprocess.Popen | None = None,
    log: Path | None = None,
    seconds: float = LONG,
    ignore: tuple[type[Exception], ...] = (),
):
    """What a condition returns, as soon as that is true; exceptions to ignore count as not yet.

    A process that ends meanwhile ends the wait; `log` is its output.
    """
    end = time.monotonic() + seconds
    while True:
        last = (
            time.monotonic() > end or process is not None and process.poll() is not None
        )  # looked at before the condition: it gets a last chance
        with suppress(*ignore):
            if found := condition():
                return found
        if last:
            raise failure(
                what,
                f"did not happen within {seconds:g} seconds" if time.monotonic() > end else "does not happen any more",
                process,
                log,
            )
        time.sleep(STEP)


async def until_so(condition: Callable[[], object], what: str, seconds: float = LONG):
    "The same for a coroutine: the loop goes on. For a condition that waits itself, hand in a coroutine function."
    end = time.monotonic() + seconds
    while True:
        last = time.monotonic() > end
        found = condition()
        if asyncio.iscoroutine(found):
            found = await found
        if found:
            return found
        if last:
            raise failure(what, f"did not happen within {seconds:g} seconds")
        await asyncio.sleep(STEP / 4)


async def in_time(waited, what: str = "it", seconds: float = LONG):
    "The result of a coroutine, task or future."
    try:
        return await asyncio.wait_for(waited, seconds)
    except TimeoutError as error:
        raise failure(what, f"did not end within {seconds:g} seconds") from error


def ended(process, log: Path | None = None, seconds: float = LONG) -> int:
    "Exit code of a process that is about to end: of subprocess or of psutil."
    try:
        return process.wait(seconds)
    except (subprocess.TimeoutExpired, psutil.TimeoutExpired) as error:
        raise failure(f"process {process.pid}", f"did not end within {seconds:g} seconds", log=log) from error


def line_of(process: subprocess.Popen, log: Path | None = None, seconds: float = QUIET) -> str:
    "The next line that a process writes to its standard output, in time; a process that ends without one is a failure."
    found = queue.Queue()
    threading.Thread(target=lambda: found.put(process.stdout.readline()), daemon=True).start()
    try:
        line = found.get(timeout=seconds)
    except queue.Empty:
        raise failure(f"process {process.pid}", f"printed nothing for {seconds:g} seconds", process, log) from None
    if not line:
        with suppress(subprocess.TimeoutExpired):
            process.wait(STEP)
        raise failure(f"process {process.pid}", "printed nothing more", process, log)
    return line.strip()


def kill_group(process: subprocess.Popen) -> None:
    "Kill a process and all that it started, where it leads a session of its own."
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()


def watched(command: list, quiet: float = QUIET, **more) -> subprocess.CompletedProcess:
    """Run a command as long as it prints something now and then; `stdout` is both of its outputs.

    A quiet one is killed with all that it started.
    """
    process = subprocess.Popen(
        [str(word) for word in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        **more,
    )
    output, heard = [], [time.monotonic()]

    def listen() -> None:
        while data := os.read(process.stdout.fileno(), 65_536):
            heard[0] = time.monotonic()
            output.append(data)

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        while listener.is_alive():
            listener.join(min(1.0, quiet / 4))
            if time.monotonic() - heard[0] > quiet:
                kill_group(process)
                listener.join()
                output.append(f"\nstopped after {quiet:g} seconds without output".encode())
        process.wait()
    finally:
        if process.poll() is None:
            kill_group(process)
        listener.join()
        process.stdout.close()
    return subprocess.CompletedProcess(command, process.returncode, b"".join(output).decode(errors="replace"), None)
