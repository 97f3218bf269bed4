"""A Dask cluster of real processes, for tests."""

import importlib
import json
import os
from contextlib import ExitStack, contextmanager
from pathlib import Path

import dask

from support.children import child
from support.waiting import LONG, until


def serve(tell, name: str, folder: Path, arguments: list[str]) -> None:
    """What the command `dask scheduler` or `dask worker` does; its log goes nowhere.

    Work stealing is off: a busy machine would move parts, and with them the last bits.
    """
    os.chdir(folder)
    dask.config.set({"distributed.scheduler.work-stealing": False})
    with open(os.devnull, "w") as nowhere:
        for stream in (1, 2):
            os.dup2(nowhere.fileno(), stream)
    importlib.import_module(f"distributed.cli.dask_{name}").main(arguments, standalone_mode=False)


@contextmanager
def cluster(folder: Path, workers: int):
    "A real scheduler and workers on free ports of this machine: address, and the workers' processes."
    folder.mkdir()
    place = folder / "scheduler.json"
    with ExitStack() as stack:

        def start(name: str, *arguments: str):
            return stack.enter_context(
                child(
                    serve,
                    name,
                    folder,
                    ["--scheduler-file", str(place), "--host", "127.0.0.1", "--no-dashboard", *arguments],
                )
            )

        scheduler = start("scheduler", "--port", "0")
        started = [
            start("worker", "--no-nanny", "--nthreads", "1", "--local-directory", str(folder / f"worker{number}"))
            for number in range(workers)
        ]
        until(lambda: place.exists() and place.stat().st_size > 0, "the scheduler writes its file", scheduler)
        address = json.loads(place.read_text())["address"]
        from distributed import Client

        with Client(address, timeout=LONG) as client:
            client.wait_for_workers(workers, timeout=LONG)
        yield address, started
