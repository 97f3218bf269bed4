"""Processes of tests, forked from one that has imported what they need: none of them pays for that again.

They are as separate as others: they can be killed, and leave files, not memory. What they run is a function that can
be imported; its first argument is a function `tell`, and what it tells is heard here.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from support.waiting import LONG, QUIET, failure

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "distributed.cli.dask_scheduler",
        "distributed.cli.dask_worker",
        "fraud_poc.features.batch",
        "fraud_poc.model.train",
        "xgboost.dask",
    ]
)


class Child:
    "One process."

    def __init__(self, function: Callable, *arguments: Any):
        self.heard, other = FORKS.Pipe(duplex=False)
        self.process = FORKS.Process(target=begin, args=(other, function, arguments))
        self.process.start()
        other.close()
        self.pid = self.process.pid

    def hear(self, seconds: float = QUIET) -> tuple | None:
        "What it tells next; None when it has ended. `AssertionError` when it says nothing for too long."
        if not self.heard.poll(seconds):
            raise failure(f"process {self.pid}", f"printed nothing for {seconds:g} seconds")
        try:
            return self.heard.recv()
        except EOFError:
            return None

    def poll(self) -> int | None:
        "Exit code, or None while it runs."
        return self.process.exitcode

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def ended(self, seconds: float = LONG) -> int:
        "Exit code, when it has ended."
        self.process.join(seconds)
        if self.process.exitcode is None:
            raise failure(f"process {self.pid}", f"did not end within {seconds:g} seconds")
        return self.process.exitcode


def begin(pipe, function: Callable, arguments: tuple) -> None:
    function(lambda *words: pipe.send(words), *arguments)


@contextmanager
def child(function: Callable, *arguments: Any) -> Iterator[Child]:
    "A process that is killed at the end, if it still runs."
    process = Child(function, *arguments)
    try:
        yield process
    finally:
        process.process.kill()
        process.process.join()
        process.heard.close()
