"""A Dask cluster of real processes, for tests."""
import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

from waiting import LONG, ended, until

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
        until(lambda: place.exists() and place.stat().st_size > 0, "the scheduler writes its file", processes[0])
        address = json.loads(place.read_text())["address"]
        from distributed import Client
        with Client(address) as client: client.wait_for_workers(workers, timeout=LONG)
        yield address, processes[1:]
    finally:
        for process in processes: process.kill()
        for process in processes: ended(process)
