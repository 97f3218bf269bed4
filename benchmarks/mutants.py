"""Which tests notice when the code is wrong?

    python benchmarks/mutants.py [--count 112] [--seed 7] [--modules live.decide,model.policy] [--workers 2]
                                 [--journal mutants.jsonl]
    python benchmarks/mutants.py --list                          # the sample, nothing runs
    python benchmarks/mutants.py --only 3,17 [--stages module]   # these, whatever the journal says of them
    python benchmarks/mutants.py --becomes "* 1001"              # no sample, but the changes that give these words

A mutant is the code with a single change of an operator or a constant: `<` becomes `<=`, `==` becomes `!=`, `+`
becomes `-`, `and` becomes `or`, `min` becomes `max`, a `not` or a minus is dropped, `True` becomes `False`, a number
one more. A seeded sample is drawn, an equal share of each module, at most one of a line. Each mutant changes a module
and its notebook together, in a copy of the project that a worker keeps, and must be noticed, or killed, by one of
three stages:

* module: the tests of that module (`TESTS`), without a change of anything else;
* notebook: the notebook that exports the module;
* rest: all other tests, those that import the module first, without the ones of `NOT_RUN`.

The first failure kills a mutant, and so does a run that says nothing for three times as long as the whole stage takes
without a mutant. All mutants go through one stage before the survivors go on to the next. Without a mutant each stage
must pass, else nothing is tried. Mutants that change nothing a user could see are listed in equivalent_mutants.toml
with the reason; they do not run. With a journal, a run that was stopped goes on where it was, and what survived a
stage is tried again once its tests changed. The tests run at low priority, and nothing that they start is left
behind. The last line is one JSON object; the exit code is 1 when more than 5 % of the mutants survive, those that are
equivalent aside.
"""

import argparse
import ast
import compileall
import hashlib
import json
import os
import queue
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from support import house  # noqa: E402

EQUIVALENT = Path(__file__).with_name("equivalent_mutants.toml")
TESTS = {  # the tests of each module of the heart, nearest first
    "core.audit": ("access", "database"),
    "core.reading": ("values", "ingest"),
    "data.log": ("ingest", "database"),
    "data.validation": ("ingest", "values"),
    "data.spelling": ("spellings",),
    "data.settle": ("ingest", "labels"),
    "data.ingest": ("ingest",),
    "features.state": ("parity", "batch"),
    "features.aggregates": ("parity", "reasons"),
    "features.event_aggregates": ("parity", "reasons"),
    "features.sequences": ("parity", "reasons"),
    "features.readers": ("parity",),
    "features.fold": ("parity", "batch"),
    "features.rows": ("parity", "domains"),
    "features.table": ("parity", "domains"),
    "features.state_files": ("batch", "parity"),
    "features.items": ("parity", "batch"),
    "features.batch": ("batch", "parity"),
    "features.frozen_labels": ("parity", "batch"),
    "features.label_history": ("labels",),
    "features.label_delay": ("dataset", "labels"),
    "model.windows": ("dataset", "split"),
    "model.dataset": ("dataset",),
    "model.evaluate": ("evaluate",),
    "model.policy": ("policy",),
    "live.store": ("store",),
    "live.redis_store": ("store",),
    "live.decide": ("decide",),
    "live.labels": ("labels",),
    "live.load": ("load",),
    "service.keys": ("access",),
    "service.scoring": ("scoring", "hot"),
    "desk.rows": ("writer",),
    "desk.writer": ("writer",),
    "desk.writer_process": ("writer",),
    "desk.accounts": ("access",),
    "desk.login": ("access",),
    "ops.erasure_plan": ("forget",),
    "ops.erasure_database": ("forget",),
    "ops.erasure_files": ("forget",),
    "ops.erasure_live": ("forget",),
    "ops.forget": ("forget",),
}
NOT_RUN = (
    "notebooks",
    "project",
    "house",
    "browser",
    "drills",
    "handbook",
)  # all notebooks, the rules of the house, and what takes minutes to say the same
STAGES = ("module", "notebook", "rest")
SURVIVORS = 0.05  # most of the mutants that are not equivalent
PATIENCE = 60  # seconds of silence on top of three times a stage
# compiled functions of other modules may hold these
OWN_CACHE = {
    "features.state",
    "features.aggregates",
    "features.event_aggregates",
    "features.sequences",
    "features.readers",
    "features.fold",
}
STOP = threading.Event()


@dataclass(frozen=True)
class Change:
    "One way in which a line can be wrong."

    module: str  # "live.decide"
    function: str  # "EventReader.time_ms"; "" outside of functions
    number: int = field(compare=False)  # of the line, from 1
    line: str  # as it is, stripped
    becomes: str  # with the change, stripped


# --- candidates -------------------------------------------------------------------------------------------------------

COMPARED = {
    ast.Lt: ("<", ("<=", ">=")),
    ast.LtE: ("<=", ("<", ">")),
    ast.Gt: (">", (">=", "<=")),
    ast.GtE: (">=", (">", "<")),
    ast.Eq: ("==", ("!=",)),
    ast.NotEq: ("!=", ("==",)),
    ast.In: ("in", ("not in",)),
    ast.NotIn: ("not in", ("in",)),
    ast.Is: ("is", ("is not",)),
    ast.IsNot: ("is not", ("is",)),
}
COMPUTED = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "//"),
    ast.Pow: ("**", "*"),
    ast.BitAnd: ("&", "|"),
    ast.BitOr: ("|", "&"),
    ast.LShift: ("<<", ">>"),
    ast.RShift: (">>", "<<"),
}
SWAPPED = {"min": "max", "max": "min", "minimum": "maximum", "maximum": "minimum"}
Spot = tuple[int, int, int, str]  # line, first and last byte in it, what comes there instead


def is_text(node: ast.AST) -> bool:
    "Whether an operand is text, or a path put together with text: another operator would only raise."
    if isinstance(node, ast.BinOp):
        return is_text(node.left) or is_text(node.right)
    return isinstance(node, ast.JoinedStr) or isinstance(node, ast.Constant) and isinstance(node.value, (str, bytes))


class Candidates(ast.NodeVisitor):
    "Collects the changes that a module's code allows."

    def __init__(self, module: str, code: str):
        self.module, self.lines, self.scope, self.found = module, [line.encode() for line in code.splitlines()], [], []
        self.visit(ast.parse(code))

    def note(self, spot: Spot) -> None:
        number, first, last, new = spot
        line = self.lines[number - 1]
        changed = line[:first] + new.encode() + line[last:]
        self.found.append(
            Change(self.module, ".".join(self.scope), number, line.decode().strip(), changed.decode().strip())
        )

    def between(self, left: ast.AST, right: ast.AST, old: str, new: str) -> None:
        "Change the operator between two operands; those on different lines are left out."
        if left.end_lineno != right.lineno:
            return
        gap = self.lines[right.lineno - 1][left.end_col_offset : right.col_offset].decode()
        at = left.end_col_offset + gap.index(old)
        self.note((right.lineno, at, at + len(old), new))

    def visit_scope(self, node: ast.AST) -> None:
        self.scope.append(node.name)
        for child in [*node.body, *getattr(node, "args", ast.arguments()).__dict__.get("defaults", [])]:
            self.visit(child)
        self.scope.pop()

    visit_FunctionDef = visit_AsyncFunctionDef = visit_ClassDef = visit_scope  # neither decorators nor annotations

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value:
            self.visit(node.value)

    def visit_Assign(self, node: ast.Assign) -> None:
        if ast.unparse(node.targets[0]) != "__all__":
            self.generic_visit(node)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        "A message: its parts have no true positions."

    def visit_Raise(self, node: ast.Raise) -> None:
        "A message."

    def visit_Compare(self, node: ast.Compare) -> None:
        for left, kind, right in zip([node.left, *node.comparators], node.ops, node.comparators):
            old, news = COMPARED[type(kind)]
            for new in news:
                self.between(left, right, old, new)
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        if type(node.op) in COMPUTED and not is_text(node.left) and not is_text(node.right):
            self.between(node.left, node.right, *COMPUTED[type(node.op)])
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if type(node.op) in COMPUTED and not is_text(node.value):
            self.between(node.target, node.value, *COMPUTED[type(node.op)])
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        words = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in zip(node.values, node.values[1:]):
            self.between(left, right, *words)
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, (ast.Not, ast.USub)) and node.lineno == node.operand.lineno:
            self.note((node.lineno, node.col_offset, node.col_offset + (4 if isinstance(node.op, ast.Not) else 1), ""))
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        name = getattr(node.func, "id", None) or getattr(node.func, "attr", None)
        if name in SWAPPED:
            self.note(
                (node.func.end_lineno, node.func.end_col_offset - len(name), node.func.end_col_offset, SWAPPED[name])
            )
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if type(node.value) in (bool, int, float):
            new = repr(not node.value if isinstance(node.value, bool) else node.value + 1)
            self.note((node.lineno, node.col_offset, node.end_col_offset, new))


def source_of(root: Path, module: str) -> Path:
    return root / "fraud_poc" / f"{module.replace('.', '/')}.py"


def candidates(root: Path, module: str) -> list[Change]:
    "All changes of a module, in the order of its lines."
    found = Candidates(module, source_of(root, module).read_text(encoding="utf-8")).found
    return sorted(
        {change for change in found if change.line != change.becomes},
        key=lambda change: (change.number, change.becomes),
    )


def sample(root: Path, modules: list[str], count: int, seed: int) -> list[Change]:
    "An equal share of each module, at most one change of a line."
    drawn = []
    for place, module in enumerate(modules):
        rng, by_line = random.Random(f"{seed} {module}"), {}
        for change in candidates(root, module):
            by_line.setdefault(change.number, []).append(change)
        share = count // len(modules) + (place < count % len(modules))
        lines = sorted(rng.sample(sorted(by_line), min(share, len(by_line))))
        drawn += [rng.choice(by_line[line]) for line in lines]
    return drawn


def known_equivalent(root: Path) -> dict[Change, str]:
    "Change -> why it changes nothing that matters; says which entries match no line of the code any more."
    entries = tomllib.loads(EQUIVALENT.read_text(encoding="utf-8")).get("mutant", []) if EQUIVALENT.exists() else []
    listed = {Change(e["module"], e["function"], 0, e["line"], e["becomes"]): e["why"] for e in entries}
    there = {change for module in {change.module for change in listed} for change in candidates(root, module)}
    for change in listed.keys() - there:
        print(f"stale in {EQUIVALENT.name}: {change.module} {change.function}: {change.line}", file=sys.stderr)
    return listed


# --- copies of the project, and runs in them --------------------------------------------------------------------------


def cell_of(root: Path, change: Change) -> tuple[Path, str, int]:
    "The notebook, cell and line of the cell that a changed line comes from."
    path = source_of(root, change.module)
    lines = path.read_text(encoding="utf-8").splitlines()
    for above in range(change.number - 1, 0, -1):
        if marker := re.match(r"# %% (\S+\.ipynb) #(\S+)", lines[above - 1]):
            return (path.parent / marker[1]).resolve(), marker[2], change.number - above - 1
    raise ValueError(f"line {change.number} of {path} comes from no cell")


def with_change(text: str, place: int, change: Change) -> str:
    "A text with one of its lines changed."
    lines = text.split("\n")
    if lines[place].strip() != change.line:
        raise ValueError(f"{change.module} and its notebook differ: run `make export`\n{lines[place]}\n{change.line}")
    lines[place] = lines[place].replace(change.line, change.becomes)
    return "\n".join(lines)


@contextmanager
def mutated(root: Path, change: Change) -> Iterator[None]:
    """A copy of the project with one change, in the module and in its notebook.

    Afterwards both are as they were, times included.
    """
    module, (notebook, ident, place) = source_of(root, change.module), cell_of(root, change)
    before = {path: (path.read_bytes(), path.stat()) for path in (module, notebook)}
    try:
        module.write_text(with_change(before[module][0].decode(), change.number - 1, change), encoding="utf-8")
        pages = json.loads(before[notebook][0])
        cell = next(cell for cell in pages["cells"] if cell.get("id") == ident)
        directives = next(at for at, line in enumerate(house.source(cell).split("\n")) if not line.startswith("#|"))
        cell["source"] = with_change(house.source(cell), directives + place, change)
        notebook.write_text(json.dumps(pages, indent=1, ensure_ascii=False), encoding="utf-8")
        yield  # the module's time is now, unlike any in a cache of compiled code
    finally:
        for path, (content, stat) in before.items():
            path.write_bytes(content)
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def end_all(mark: str) -> None:
    "Kill what carries a mark in its environment: a run, and all that its tests started in sessions of their own."
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("FRAUD_POC_MUTANT") == mark:
                process.kill()


def run(root: Path, command: list[str], silence: float, compiled: str | None = None) -> tuple[int | None, str]:
    "Exit code, None for a hang, and output of a command in a copy of the project."
    mark = uuid.uuid4().hex
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))}
    env |= {
        "PYTHONPATH": str(root),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "HYPOTHESIS_PROFILE": "unshrunk",
        "FRAUD_POC_SHARED": str(house.shared_folder(ROOT)),
        "FRAUD_POC_MUTANT": mark,
    } | ({"NUMBA_CACHE_DIR": compiled} if compiled else {})
    with tempfile.NamedTemporaryFile() as output:
        process = subprocess.Popen(
            command,
            cwd=root,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        size, heard = 0, time.monotonic()
        try:
            while process.poll() is None and time.monotonic() < heard + silence and not STOP.wait(0.2):
                if (now := os.path.getsize(output.name)) != size:
                    size, heard = now, time.monotonic()
        finally:
            code = process.poll()
            end_all(mark)
            process.wait()
        return code, Path(output.name).read_text(encoding="utf-8", errors="replace")


def test_files(root: Path, module: str) -> tuple[list[str], list[str]]:
    "The test files of a module, and the rest of those that run: importers of the module first."
    own = [f"tests/test_{name}.py" for name in TESTS.get(module, ())]
    rest = {
        path: path.read_text(encoding="utf-8")
        for path in sorted((root / "tests").glob("test_*.py"))
        if path.stem.removeprefix("test_") not in NOT_RUN
    }
    parent, _, name = module.rpartition(".")
    importing = re.compile(
        rf"^\s*(from fraud_poc\.{re.escape(module)} import|from fraud_poc\.{parent} import .*\b{name}\b)", re.M
    )
    names = [
        path.relative_to(root).as_posix() for path in sorted(rest, key=lambda path: not importing.search(rest[path]))
    ]
    return own, [name for name in names if name not in own]


def command_of(root: Path, module: str, stage: str) -> list[str]:
    "The command of a stage."
    if stage == "notebook":
        marker = re.search(r"^# %% (\S+\.ipynb) #", source_of(root, module).read_text(encoding="utf-8"), re.M)
        return ["nbdev_test", "--path", f"nbs/{Path(marker[1]).name}", "--n_workers", "0", "--do_print"]
    return [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        *test_files(root, module)[stage == "rest"],
    ]


def fingerprint(root: Path, module: str, stage: str) -> str:
    "Of the module and the tests of a stage: with another one, what passed and what survived says nothing any more."
    tests = [
        root / word for word in command_of(root, module, stage) if (root / word).is_file() and word != sys.executable
    ]
    return hashlib.sha256(
        b"".join(path.read_bytes() for path in (source_of(root, module), root / "tests" / "conftest.py", *tests))
    ).hexdigest()


def killer(code: int | None, output: str) -> str:
    "The test that failed, or what else ended a run."
    if code is None:
        return "a hang"
    failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - |$)", output, re.M)
    return failed[1] if failed else output.strip().splitlines()[-1][:150] if output.strip() else f"exit code {code}"


# --- the whole --------------------------------------------------------------------------------------------------------


class Trial:
    "Runs stages without a mutant and with one, in a pool of copies, and keeps a journal."

    def __init__(self, modules: list[str], folder: Path, workers: int, journal: Path | None):
        self.copies, self.workers, self.journal, self.lock = queue.SimpleQueue(), workers, journal, threading.Lock()
        for number in range(workers):
            copy = house.copy_project(ROOT, folder / f"worker_{number}")
            compileall.compile_dir(copy / "fraud_poc", quiet=2)
            self.copies.put(copy)
        self.states = {(module, stage): fingerprint(copy, module, stage) for module in modules for stage in STAGES}
        self.seconds = {}  # (module, stage) -> how long it takes without a mutant
        self.past = {}  # (change, stage) -> what killed it there; None when it survived
        for line in journal.read_text(encoding="utf-8").splitlines() if journal and journal.exists() else []:
            self.recall(json.loads(line))

    def recall(self, line: dict) -> None:
        """Take in a line of the journal.

        What was killed stays so; what passed or survived counts only with the tests of today.
        """
        same = line["state"] == self.states.get((line["module"], line["stage"]))
        if "mutant" not in line:
            if same:
                self.seconds[line["module"], line["stage"]] = line["seconds"]
        elif same or line["killed_by"]:
            self.past[Change(**line["mutant"]), line["stage"]] = line["killed_by"]

    def note(self, module: str, stage: str, seconds: float, **more) -> None:
        if not self.journal:
            return
        line = {
            "module": module,
            "stage": stage,
            "state": self.states[module, stage],
            "seconds": round(seconds, 1),
            **more,
        }
        with self.lock, open(self.journal, "a", encoding="utf-8") as handle:
            handle.write(json.dumps(line) + "\n")

    @contextmanager
    def copy(self) -> Iterator[Path]:
        found = self.copies.get()
        try:
            yield found
        finally:
            self.copies.put(found)

    def map(self, function, *arguments) -> list:
        with ThreadPoolExecutor(self.workers) as pool:
            try:
                return list(pool.map(function, *arguments))
            except BaseException:
                STOP.set()
                pool.shutdown(cancel_futures=True)
                raise

    def baseline(self, module: str, stage: str) -> None:
        "How long a stage takes without a mutant; `SystemExit` when it fails."
        with self.copy() as copy:
            start = time.monotonic()
            code, output = run(copy, command_of(copy, module, stage), 3600)
        if code != 0:
            raise SystemExit(
                f"without a mutant, stage {stage} of {module} fails, so that it can tell nothing:\n{output[-5000:]}"
            )
        self.seconds[module, stage] = time.monotonic() - start
        self.note(module, stage, self.seconds[module, stage])
        print(
            f"{'-':>4} {module:<20} {stage:<9} {self.seconds[module, stage]:>6.0f} s  passes without a mutant",
            flush=True,
        )

    def attempt(self, number: int, change: Change, stage: str) -> str | None:
        "What kills a mutant in a stage; None when it survives."
        own_cache = change.module in OWN_CACHE
        with (
            self.copy() as copy,
            tempfile.TemporaryDirectory() if own_cache else nullcontext() as compiled,
            mutated(copy, change),
        ):
            start = time.monotonic()
            code, output = run(
                copy,
                command_of(copy, change.module, stage),
                PATIENCE + 3 * self.seconds[change.module, stage] + 240 * own_cache,
                compiled,
            )
        if STOP.is_set():
            return None
        killed_by, seconds = killer(code, output) if code != 0 else None, time.monotonic() - start
        print(
            f"{number:>4} {change.module:<20} {stage:<9} {seconds:>6.0f} s  "
            f"{'killed by ' + killed_by if killed_by else 'SURVIVES: ' + change.becomes}",
            flush=True,
        )
        self.past[change, stage] = killed_by
        self.note(change.module, stage, seconds, mutant=asdict(change), killed_by=killed_by)
        return killed_by

    def stage(self, stage: str, mutants: dict[int, Change]) -> None:
        "Take mutants through a stage. The rest of the tests is timed once, from one module."
        todo = {
            number: change
            for number, change in sorted(mutants.items(), reverse=True)
            if (change, stage) not in self.past
        }  # compiled code, which is slow, comes last
        modules = sorted({change.module for change in todo.values()})
        if stage == "rest":
            modules = modules[:1]
        untimed = [module for module in modules if (module, stage) not in self.seconds]
        self.map(self.baseline, untimed, [stage] * len(untimed))
        for change in todo.values():
            self.seconds.setdefault((change.module, stage), self.seconds[modules[0], stage])
        self.map(self.attempt, todo.keys(), todo.values(), [stage] * len(todo))

    def killed(self, change: Change) -> bool:
        return any(self.past.get((change, stage)) for stage in STAGES)


def tell(drawn: dict[int, Change], equivalent: dict[Change, str], trial: Trial) -> int:
    "The survivors and the totals; returns the exit code."
    survived = {
        number: change for number, change in drawn.items() if change not in equivalent and not trial.killed(change)
    }
    for number, change in survived.items():
        print(
            f"\n{number:>4} {change.module} {change.function}, line {change.number}\n     {change.line}\n"
            f"  -> {change.becomes}"
        )
    same, left = sum(change in equivalent for change in drawn.values()), len(survived)
    print(json.dumps({"mutants": len(drawn), "killed": len(drawn) - same - left, "equivalent": same, "survived": left}))
    return int(left > SURVIVORS * (len(drawn) - same))


def stop(*_) -> None:
    STOP.set()
    raise SystemExit("stopped")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--count", type=int, default=112, help="mutants, an equal share of each module (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--modules", default=",".join(TESTS), help="names, with commas (default: the heart)")
    parser.add_argument(
        "--workers",
        type=int,
        default=2,
        help="mutants tried side by side, each in a copy of the project (default: %(default)s)",
    )
    parser.add_argument("--stages", default=",".join(STAGES), help="default: %(default)s")
    parser.add_argument("--only", help="numbers of mutants, with commas: these alone are tried, again")
    parser.add_argument(
        "--becomes", help="instead of a sample: every change of these modules that brings this text into a line"
    )
    parser.add_argument("--list", action="store_true", help="show the sample and end")
    parser.add_argument("--journal", type=Path, help="file to keep results in, and to go on from")
    parser.add_argument(
        "--scratch",
        type=Path,
        help="folder for the copies, which is kept with its compiled code (default: a temporary one)",
    )
    given = parser.parse_args()
    modules = given.modules.split(",")
    if given.becomes:
        chosen = [
            change
            for module in modules
            for change in candidates(ROOT, module)
            if given.becomes in change.becomes and given.becomes not in change.line
        ]
    else:
        chosen = sample(ROOT, modules, given.count, given.seed)
    drawn = dict(enumerate(chosen, 1))
    equivalent = known_equivalent(ROOT)
    if given.only:
        drawn = {number: drawn[number] for number in map(int, given.only.split(","))}
    if given.list:
        for number, change in drawn.items():
            print(
                f"{number:>4} {change.module}:{change.number} "
                f"{change.function}{' (equivalent)' * (change in equivalent)}\n     {change.line}\n"
                f"  -> {change.becomes}"
            )
        return 0
    os.nice(19)
    signal.signal(signal.SIGTERM, stop)
    with nullcontext(given.scratch) if given.scratch else tempfile.TemporaryDirectory() as folder:
        trial = Trial(modules, Path(folder), given.workers, given.journal)
        if given.only:
            trial.past = {key: killed_by for key, killed_by in trial.past.items() if key[0] not in drawn.values()}
        for stage in given.stages.split(","):
            trial.stage(
                stage,
                {
                    number: change
                    for number, change in drawn.items()
                    if change not in equivalent and not trial.killed(change)
                },
            )
    return tell(drawn, equivalent, trial)


if __name__ == "__main__":
    sys.exit(main())
