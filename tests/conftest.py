"""What all tests share: the folder of external data, and a look at what tests leave behind."""

import gc
import logging
import os
import time
import uuid
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import psutil
import pytest

# A thread of OpenMP that has nothing to do sleeps: by default it burns its core, which other processes of the tests
# need. The results are the same. Read once, at import
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# scikit-learn sets these when it is first imported: here they are set before any test looks
os.environ.setdefault("KMP_DUPLICATE_LIB_OK", "True")
os.environ.setdefault("KMP_INIT_AT_FORK", "FALSE")
from hypothesis import HealthCheck, Phase, settings
from support import databases, house
from support.waiting import PATIENCE, until

from fraud_poc.live.redis_server import start_redis

ROOT = Path(__file__).resolve().parent.parent
MARK = "FRAUD_POC_TEST_RUN"  # environment variable, of this run
# The time at which the tests run, as the code under test sees it, whatever the calendar says: FRAUD_POC_TEST_NOW
# tries another one
NOW = datetime.fromisoformat(os.environ.get("FRAUD_POC_TEST_NOW", "2025-11-05T10:30:00+00:00"))

# A machine shared with others makes single examples slow now and then: that is no failure. The same examples are
# drawn each time, but for HYPOTHESIS_PROFILE=long, which draws many more, and other ones each time
settings.register_profile("house", deadline=None, print_blob=True, derandomize=True, database=None)
settings.register_profile(
    "long", deadline=None, print_blob=True, max_examples=1000, database=None, suppress_health_check=list(HealthCheck)
)
settings.register_profile(
    "unshrunk", settings.get_profile("house"), phases=[Phase.explicit, Phase.generate]
)  # for benchmarks/mutants.py: that it fails is enough
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "house"))


@pytest.fixture(scope="session")
def root() -> Path:
    "The folder of the project."
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    "The folder of data that nobody here wrote (handbook/, bitcoin_otc/), which is no part of the project."
    folder = house.shared_folder(ROOT) / "data"
    if not folder.is_dir():
        pytest.skip(f"no external data at {folder}: set FRAUD_POC_SHARED to the folder that holds data/")
    return folder


@pytest.fixture(scope="session")
def new_databases(tmp_path_factory):
    "Makes databases of both kinds; the first test that needs PostgreSQL starts its server."
    with databases.Databases(tmp_path_factory.mktemp("databases")) as made:
        yield made


@pytest.fixture(params=databases.KINDS)
def empty_database_url(request, new_databases):
    "Address of a database without tables; a test that asks for it runs once with each kind."
    with new_databases.empty(request.param) as url:
        yield url


@pytest.fixture(params=databases.KINDS)
def database_url(request, new_databases):
    "Address of a database whose tables are made and empty; a test that asks for it runs once with each kind."
    with new_databases.copy(request.param, databases.make_tables) as url:
        yield url


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory):
    "A server of its own for the tests of a file."
    with start_redis(tmp_path_factory.mktemp("redis_server") / "redis") as server:
        yield server


@pytest.fixture(autouse=True)
def _logs_as_before():
    "A command that a test calls sets up the logs of this process, for a stream that is closed after the test."
    loggers = [logging.getLogger(name) for name in ("fraud_poc", "uvicorn", "uvicorn.error", "uvicorn.access")]
    before = [(logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    yield
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)


@pytest.fixture(autouse=True)
def _process_as_before():
    "A test gives back the environment variables and the working directory as it found them."
    before, folder = dict(os.environ), os.getcwd()
    yield
    changed = sorted(
        name
        for name in before.keys() | os.environ.keys()
        if name != "PYTEST_CURRENT_TEST" and before.get(name) != os.environ.get(name)
    )
    assert not changed, f"the test leaves environment variables changed: {', '.join(changed)}. Use monkeypatch"
    assert os.getcwd() == folder, f"the test leaves the working directory at {os.getcwd()}. Use monkeypatch.chdir"


def pytest_addoption(parser):
    parser.addoption(
        "--notebooks-serially",
        action="store_true",
        help="run the notebooks one after another, and not two side by side",
    )


# Files that take longest, so that no worker is left with one of them at the end. In a fresh clone the notebooks are
# the first to compile the fold: what needs it compiled comes after what does not, and finds part of it there
LONGEST = [
    "test_notebooks",
    "test_project",
    "test_house",
    "test_ingest",
    "test_desk",
    "test_browser",
    "test_drills",
    "test_backup",
    "test_writer",
    "test_app",
    "test_scoring",
    "test_commands",
    "test_batch",
    "test_parity",
    "test_train",
    "test_handbook",
    "test_cli",
    "test_portions",
    "test_access",
    "test_dataset",
    "test_feed",
    "test_forget",
]


def pytest_collection_modifyitems(items):
    "The longest files start first."
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


def pytest_collection_finish():
    # What the test modules imported stays: without this, the collector goes through it again and again, which took 7
    # to 14 % of the CPU time of a test file
    gc.set_threshold(50_000, 20, 20)
    gc.collect()
    gc.freeze()


def pytest_sessionstart(session):
    if hasattr(session.config, "workerinput"):
        return
    session.config.tree_before = house.tree(ROOT)
    os.environ[MARK] = uuid.uuid4().hex  # all processes that the tests start inherit it
    os.environ["FRAUD_POC_CLOCK_SHIFT"] = f"{round(NOW.timestamp() - time.time()):d}s"


def processes_left() -> list[str]:
    """Processes that the tests started and that still run.

    Processes that run tests, and those that Python keeps for them, are left out.
    """
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            command = " ".join(process.cmdline())
            ours = (
                process.environ().get(MARK) == os.environ[MARK]
                and process.pid != os.getpid()
                and process.status() != psutil.STATUS_ZOMBIE
            )
            forked = "multiprocessing.forkserver" in command and "multiprocessing.forkserver" in " ".join(
                process.parent().cmdline()
            )
            if ours and (
                forked
                or not any(
                    word in command
                    for word in ("sys.stdin.readline", "multiprocessing.resource_tracker", "multiprocessing.forkserver")
                )
            ):
                found.append(f"process {process.pid} still runs: {command[:200]}")
    return found


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session):
    """Tests leave the project's folder as they found it, and no process.

    Otherwise the run fails, even if each test passed.
    """
    if not hasattr(session.config, "tree_before"):
        return
    with suppress(AssertionError):
        until(lambda: not processes_left(), "all processes end", seconds=30 * PATIENCE)
    session.config.tree_changes = house.tree_difference(session.config.tree_before, house.tree(ROOT)) + processes_left()
    if session.config.tree_changes:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter, config):
    changes = getattr(config, "tree_changes", [])
    if not changes:
        return
    terminalreporter.section("the tests left something behind, so this run FAILED", red=True)
    for change in changes[:30]:
        terminalreporter.write_line(change)
