"""What do processes take to start: seconds, CPU seconds, memory, and which large libraries do they load?

    python benchmarks/start.py [--starts 5] [--history 3000] [--made FOLDER]

A small domain with a model is made first. Then each of these is started several times, and the medians are shown:

  service         `fraud-poc serve` with one worker, until /readyz answers 200; the processes that score, without
                  store and decision writer
  writer          the decision writer that `serve` starts beside it, until it has written the one decision that is
                  made when the service is ready
  --help, config  the command line, until it has ended

CPU time is that of user and system together. Memory is the proportional set size (PSS) of the processes when they are
ready, where the system tells it, else the resident set size (RSS); of the command line it is the largest RSS. A first
start, which is not counted, fills numba's cache and notes which large libraries each process imports. The decision
writer runs at idle priority: on a busy machine its seconds say little, its CPU seconds do. The last line is one JSON
object.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from drill import CONFIG, ROOT, Domain, Progress, family, say, serving, writers_of

from fraud_poc.service.client import ServiceClient

LIBRARIES = ("pandas", "dask", "distributed", "matplotlib", "sklearn", "scipy", "xgboost", "pyarrow")
COMMANDS = {"--help": ["--help"], "config": ["config", "--config", str(CONFIG)]}
COMMAND_LINE = [sys.executable, "-c", "from fraud_poc.cli import main; main()"]
# Python imports a module of this name when it starts: it notes the first import of each library, in a file for each
# process
NOTE_IMPORTS = """import os, sys
LIBRARIES, FOLDER = {libraries!r}, {folder!r}

def note(event, arguments):
    if event == "import" and arguments[0] in LIBRARIES:
        with open(os.path.join(FOLDER, str(os.getpid())), "a") as handle:
            handle.write(arguments[0] + "\\n")

sys.addaudithook(note)
"""

# Run the command in the arguments; its figures as the last line
RUN_COMMAND = """import json, os, sys, time

begun = time.perf_counter()
actions = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
process = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=actions)
_, status, used = os.wait4(process, 0)
seconds = time.perf_counter() - begun
figures = {"seconds": seconds, "cpu_seconds": used.ru_utime + used.ru_stime, "megabytes": used.ru_maxrss * 1024 / 1e6}
print(json.dumps(figures | {"processes": [process]}))
sys.exit(os.waitstatus_to_exitcode(status))
"""


@contextmanager
def noted_imports(folder: Path) -> Iterator[None]:
    "Within it, new processes note which libraries they import."
    (folder / "sitecustomize.py").write_text(NOTE_IMPORTS.format(libraries=LIBRARIES, folder=str(folder)))
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), str(ROOT)])
    try:
        yield
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before


def imported(folder: Path, processes: list[int]) -> list[str]:
    "The libraries that processes imported."
    found = set()
    for process in processes:
        path = folder / str(process)
        found |= set(path.read_text().split()) if path.exists() else set()
    return sorted(found)


def cpu_seconds(process: int) -> float:
    "CPU time of a process so far, user and system."
    fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(process: int) -> int:
    "Bytes in memory of a process: its share of pages that several have, where the system tells it."
    for name, field in (("smaps_rollup", "Pss"), ("status", "VmRSS")):
        try:
            found = re.search(rf"^{field}:\s+(\d+)", Path(f"/proc/{process}/{name}").read_text(), re.MULTILINE)
        except OSError:
            continue
        if found:
            return int(found[1]) * 1024
    return 0


def measured(seconds: float, processes: list[int]) -> dict[str, float]:
    "The figures of running processes."
    return {
        "seconds": seconds,
        "cpu_seconds": sum(map(cpu_seconds, processes)),
        "megabytes": sum(map(memory, processes)) / 1e6,
    }


def wait_until_written(client: ServiceClient) -> None:
    "Wait until every decision is in the database."

    def behind() -> float:
        text = client.ask("GET", "/metrics")[1]
        return float(re.search(r"^fraud_poc_decisions_behind (\S+)$", text, re.MULTILINE)[1])

    progress = Progress("no decision went into the database", behind)
    while progress.look():
        time.sleep(0.02)


def start_service(domain: Domain, order: dict, log: Path) -> dict[str, dict]:
    "Start the service once; the figures of service and writer, with their processes."
    begun = time.perf_counter()
    with serving(domain, log, writer_last=False) as (address, process):
        ready = time.perf_counter() - begun
        writers = writers_of(process.pid)
        scorers = [one for one in family(process.pid) if one not in writers]
        service = measured(ready, scorers) | {"processes": scorers}
        client = ServiceClient(address, domain.key)
        client.score(order | {"order_id": f"start-{time.time_ns()}"})
        wait_until_written(client)
        writer = measured(time.perf_counter() - begun, writers_of(process.pid)) | {"processes": writers}
    return {"service": service, "writer": writer}


def start_command(words: list[str]) -> dict:
    """Run a command once, by a small process.

    The largest RSS of a process counts what its parent had when it was started.
    """
    environment = os.environ | {"PYTHONPATH": os.environ.get("PYTHONPATH", str(ROOT))}
    runner = [sys.executable, "-S", "-c", RUN_COMMAND, *COMMAND_LINE, *words]
    done = subprocess.run(runner, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"`fraud-poc {' '.join(words)}` failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def start_all(domain: Domain, order: dict, log: Path) -> dict[str, dict]:
    "Everything once."
    return start_service(domain, order, log) | {name: start_command(words) for name, words in COMMANDS.items()}


def medians(runs: list[dict[str, dict]], libraries: dict[str, list[str]]) -> dict[str, dict]:
    "The median of each figure."
    found = {}
    for name in runs[0]:
        middle = lambda figure, name=name: statistics.median(run[name][figure] for run in runs)
        found[name] = {
            "seconds": round(middle("seconds"), 2),
            "cpu_seconds": round(middle("cpu_seconds"), 2),
            "megabytes": round(middle("megabytes"), 1),
            "libraries": libraries[name],
        }
    return found


def measure(options: argparse.Namespace, home: Path) -> dict[str, dict]:
    "All starts in a folder."
    domain = Domain(home / "domain", 500, options.history, options.made, **{"service.workers": 1})
    (_, order), *_ = domain.orders(1)
    log, notes = home / "service.log", home / "imports"
    notes.mkdir()
    with noted_imports(notes):
        first = start_all(domain, order, log)
    libraries = {name: imported(notes, run["processes"]) for name, run in first.items()}
    runs = []
    for number in range(options.starts):
        runs.append(start_all(domain, order, log))
        say(f"start {number + 1} of {options.starts} is measured")
    return medians(runs, libraries)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--starts", type=int, default=5, help="that are measured, after one that is not")
    parser.add_argument("--history", type=int, default=3_000, help="orders that were there before")
    parser.add_argument("--made", type=Path, help="folder of a domain that was made before and is copied")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        found = measure(options, Path(home))
    print(f"{'':<10}{'seconds':>9}{'CPU s':>8}{'MB':>8}  large libraries")
    for name, row in found.items():
        loaded = ", ".join(row["libraries"]) or "none"
        print(f"{name:<10}{row['seconds']:>9.2f}{row['cpu_seconds']:>8.2f}{row['megabytes']:>8.1f}  {loaded}")
    print(json.dumps(found | {"starts": options.starts}))


if __name__ == "__main__":
    main()
