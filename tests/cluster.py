"""A Dask cluster of real processes, for tests."""
import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@contextmanager
def cluster(folder: Path, workers: int):
    "A real scheduler and workers on free ports of this machine: address, and the workers' processes."
    folder.mkdir()
    place, processes = folder / "scheduler.json", []
    def start(name: str, *arguments: str) -> None:
        command = [sys.executable, "-m", f"distributed.cli.dask_{name}", "--scheduler-file", str(place), "--host", "127.0.0.1", "--no-dashboard", *arguments]
        processes.append(subprocess.Popen(command, cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
    try:
        start("scheduler", "--port", "0")
        for number in range(workers): start("worker", "--no-nanny", "--nthreads", "1", "--local-directory", str(folder / f"worker{number}"))
        until(lambda: place.exists() and place.stat().st_size > 0, 60, "the scheduler did not start")
        address = json.loads(place.read_text())["address"]
        from distributed import Client
        with Client(address) as client: client.wait_for_workers(workers, timeout=60)
        yield address, processes[1:]
    finally:
        for process in processes: process.kill()
        for process in processes: process.wait()


def until(condition, seconds: float, message: str) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, message
        time.sleep(0.02)
