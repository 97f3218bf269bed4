"""The rules of the house as functions: each is given text, a notebook or a folder, and returns what is wrong with it.

What is wrong is a list of sentences.

`test_house.py` shows each rule something bad; `test_project.py` and `test_notebooks.py` hold the project to them.
"""

import ast
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from fraud_poc.core.settings import read_settings
from support.waiting import QUIET, watched

FUNCTION_LINES = 40  # most lines of an exported function, as ruff formats it
LINE = 120  # most characters of a line; ruff checks the same in cells, tests and benchmarks
CLASS_LINES = 100  # most lines of an exported class, and of any exported cell: imports and blank lines are not counted
INTRO_WORDS = 150  # most words before the first heading or code
OUTPUT_BYTES = 20_000  # saved output of a notebook, images aside
IMAGES, IMAGE_BYTES = 6, 150_000  # images of a notebook, and the size of each as it is saved
CACHES = {
    ".git",
    ".venv",
    "__pycache__",
    ".pytest_cache",
    ".hypothesis",
    ".ruff_cache",
    ".ipynb_checkpoints",
    "build",
}  # and *.egg-info


# --- notebooks --------------------------------------------------------------------------------------------------------


def source(cell: dict) -> str:
    return "".join(cell["source"])


def is_exported(cell: dict) -> bool:
    return cell["cell_type"] == "code" and bool(re.search(r"^#\|\s*export", source(cell), re.M))


def code_lines(cell: dict) -> int:
    "Lines of a cell without blank ones, directives and imports."
    imports = sum(node.end_lineno - node.lineno + 1 for node in ast.parse(source(cell)).body if is_import(node))
    return sum(bool(line.strip()) and not line.startswith("#|") for line in source(cell).splitlines()) - imports


def is_import(node: ast.AST) -> bool:
    return isinstance(node, (ast.Import, ast.ImportFrom))


def size_problems(cell: dict) -> list[str]:
    "Functions and cells that do not fit on a page."
    problems = [
        f"{node.name} has {node.end_lineno - node.lineno + 1} lines, more than {FUNCTION_LINES}"
        for node in ast.walk(ast.parse(source(cell)))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and node.end_lineno - node.lineno + 1 > FUNCTION_LINES
    ]
    if code_lines(cell) > CLASS_LINES:
        first = next(line for line in source(cell).splitlines() if line.strip() and not line.startswith("#|"))
        problems.append(f"the exported cell '{first}' has {code_lines(cell)} lines, more than {CLASS_LINES}")
    return problems


def floor_of(name: str) -> int | None:
    "The number that a notebook's name starts with."
    match = re.match(r"(\d\d\d)_\w+", name)
    return int(match[1]) if match else None


def module_of(notebook: dict) -> str | None:
    "The module that a notebook exports to: `data.files`."
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code" and (match := re.search(r"^#\|\s*default_exp\s+(\S+)", source(cell), re.M)):
            return match[1]
    return None


def notebook_problems(notebook: dict) -> list[str]:
    "What the layout, the prose and the tests of one notebook lack."
    cells, problems = notebook["cells"], []
    exported = [c for c in cells if is_exported(c)]
    others = [c for c in cells if c["cell_type"] == "code" and not is_exported(c)]
    if not cells or cells[0]["cell_type"] != "markdown" or not re.match(r"# .+\n\s*\n> .+", source(cells[0])):
        problems.append("the first cell is not '# Title', an empty line, and '> one sentence'")
    if bool(exported) != bool(module_of(notebook)):
        problems.append("cells marked '#| export' and a '#| default_exp' cell go together")
    for cell in exported:
        problems += size_problems(cell)
    if not any(re.search(r"\bassert\b|\braises\(", source(c)) for c in others):
        problems.append("no assertion outside of the exported cells")
    return problems + intro_problems(cells) + ending_problems(cells)


def intro_problems(cells: list[dict]) -> list[str]:
    "Whether the page comes to its point: what and why, before the first heading or code."
    count = 0
    for cell in cells[1:]:
        text = source(cell)
        if cell["cell_type"] == "code" and all(line.startswith("#|") for line in text.splitlines() if line.strip()):
            continue
        if cell["cell_type"] == "code" or text.startswith("## "):
            break
        count += len(text.split())
    return [f"the introduction has {count} words, more than {INTRO_WORDS}"] if count > INTRO_WORDS else []


def ending_problems(cells: list[dict]) -> list[str]:
    "Whether the last section is a test that can fail."
    headings = [i for i, c in enumerate(cells) if c["cell_type"] == "markdown" and re.search(r"^## ", source(c), re.M)]
    if not headings or re.findall(r"^## (.+?)\s*$", source(cells[headings[-1]]), re.M)[-1] != "Test":
        return ["the last section is not '## Test'"]
    asserts = any(
        re.search(r"\bassert\b|\braises\(", source(c)) for c in cells[headings[-1] :] if c["cell_type"] == "code"
    )
    return [] if asserts else ["the section '## Test' asserts nothing"]


NOT_SAVED = {
    "a path of this machine": r"/(?:home|root|tmp|work|Users)/|/var/folders/|\b[A-Z]:\\\\",
    "an address in memory": r"\bat 0x[0-9a-f]+|\b0x7f[0-9a-f]{6,}",
    "a measured time": r"Wall time:|CPU times:|\bper loop\b|\bmean ± std\b|\d it/s\b|\d\d:\d\d<\d\d:\d\d",
    "terminal control characters": "\x1b|\r(?!\n)",
}


def output_problems(notebook: dict) -> list[str]:
    "What is wrong with the saved outputs of a notebook: their size, errors, what differs from one run to the next."
    problems, size, images = [], 0, []
    for cell in notebook["cells"]:
        if {"execution", "ExecuteTime"} & set(cell["metadata"]):
            problems.append("a cell keeps the time at which it ran: run `make export`")
        for output in cell.get("outputs", []):
            kept = json.loads(json.dumps(output))
            data = kept.get("data", {})
            images += [len("".join(data.pop(kind))) for kind in list(data) if kind.startswith("image/")]
            text = "".join(
                "".join(v) if isinstance(v, (str, list)) else json.dumps(v)
                for v in [kept.get("text", ""), *data.values()]
            )
            size += len(json.dumps(kept))
            if kept["output_type"] == "error":
                problems.append(f"a cell failed: {kept.get('ename')}: {kept.get('evalue')}")
            if kept.get("name") == "stderr":
                problems.append(f"a warning or a progress bar was saved: '{text[:80]}'")
            for what, pattern in NOT_SAVED.items():
                if match := re.search(pattern, text):
                    problems.append(f"an output holds {what}: '{text[max(0, match.start() - 20) : match.end() + 20]}'")
    if size > OUTPUT_BYTES:
        problems.append(f"saved outputs take {size:,} bytes, images aside, more than {OUTPUT_BYTES:,}")
    if len(images) > IMAGES:
        problems.append(f"{len(images)} images, more than {IMAGES}")
    if images and max(images) > IMAGE_BYTES:
        problems.append(f"an image takes {max(images):,} bytes, more than {IMAGE_BYTES:,}: fewer dots per inch")
    return problems


def pairing_problems(notebooks: dict[str, dict], modules: set[str]) -> list[str]:
    """Whether each exporting notebook has its module, each module its notebook, and each number one notebook.

    `notebooks` are by name, `modules` those that exist.
    """
    problems, floors, owners = [], {}, {}
    for name, notebook in sorted(notebooks.items()):
        if floor_of(name) is None:
            problems.append(f"{name} does not start with a number of three digits")
        elif (other := floors.setdefault(floor_of(name), name)) != name:
            problems.append(f"{other} and {name} have one number")
        if module := module_of(notebook):
            if module in owners:
                problems.append(f"{owners[module]} and {name} both export {module}")
            owners[module] = name
    problems += [
        f"{owners[m]} exports {m}, which does not exist: run `make export`" for m in sorted(owners.keys() - modules)
    ]
    return problems + [f"module {m} has no notebook" for m in sorted(modules - owners.keys())]


def is_migration(path: Path) -> bool:
    "Whether a file is one of the migrations of the database, the only part of the package that no notebook writes."
    return path.parts[-3:-1] == ("desk", "migrations") or path.parts[-4:-1] == ("desk", "migrations", "versions")


# --- code -------------------------------------------------------------------------------------------------------------


def imported(code: str, package: str = "") -> list[str]:
    """Names that some code imports, in full.

    `from fraud_poc.data import files` gives fraud_poc.data and fraud_poc.core.files.
    """
    names = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names += [base] + [f"{base}.{alias.name}" for alias in node.names]
    return names


def floor_problems(module: str, code: str, floors: dict[str, int], own: int) -> list[str]:
    """Modules (`data.files`) that code at floor `own` imports though they are not below it.

    nbdev writes relative imports; they are resolved.
    """
    package = ".".join(["fraud_poc", *module.split(".")[:-1]])
    used = {name.removeprefix("fraud_poc.") for name in imported(code, package)} & floors.keys()
    return [
        f"{module} (floor {own}) imports {name} (floor {floors[name]})" for name in sorted(used) if floors[name] >= own
    ]


def line_problems(code: str) -> list[str]:
    "Lines of a module that are too long; the list `__all__`, which nbdev writes, may have such."
    listed = {
        number
        for node in ast.parse(code).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        for number in range(node.lineno, node.end_lineno + 1)
    }
    return [
        f"line {number} has {len(line)} characters, more than {LINE}"
        for number, line in enumerate(code.splitlines(), 1)
        if len(line) > LINE and number not in listed
    ]


@cache
def distributions() -> dict[str, list[str]]:
    "Import name -> distributions that bring it: sklearn comes with scikit-learn."
    return dict(packages_distributions())


def dependency_problems(code: str, requirements: list[str]) -> list[str]:
    "Imports of what neither Python nor the runtime requirements bring."
    given = {canonicalize_name(Requirement(r).name) for r in requirements} | {
        extra for r in requirements for extra in Requirement(r).extras
    }
    # inside the package, no relative import leads above it
    names = (
        {name.split(".")[0] for name in imported(code, "fraud_poc.a.b.c")}
        - {"fraud_poc"}
        - set(sys.stdlib_module_names)
    )
    brought_by = distributions()
    return [
        f"imports {name}, which is no runtime requirement"
        for name in sorted(names)
        if not given & {canonicalize_name(package) for package in brought_by.get(name, [name])}
    ]


def rest_of_settings(root: Path, card: str) -> str:
    "The sections of a configuration from [training] on, for a small domain of a test's own."
    text = (root / "config" / "ratings.toml").read_text(encoding="utf-8")
    return "\n" + text[text.index("[training]") :].replace('card = "target"', f'card = "{card}"')


def small_settings(root: Path, card: str, own: dict[str, dict]) -> dict:
    """All sections of a configuration for a small domain of a test's own.

    What it does not name is as in config/ratings.toml.
    """
    ratings, _ = read_settings(root / "config" / "ratings.toml")
    ratings["acceptance"]["card"] = card
    ratings["columns"]["shared"] = {}
    return {name: section | own.get(name, {}) for name, section in ratings.items()}


def clock_problems(tree: ast.AST) -> list[str]:
    """Where code asks the machine what time it is, and does not call the clock that it was given.

    Only `events.system_clock` may.
    """
    allowed = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef) and function.name == "system_clock"
        for node in ast.walk(function)
    }
    names = [
        (node.lineno, ast.unparse(node))
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and id(node) not in allowed
    ]
    return [
        f"line {line}: {name}: take a `Clock`"
        for line, name in names
        if re.search(
            r"\b(time\.time(_ns)?|time\.localtime|(datetime|Timestamp)\.(now|utcnow|today)|date\.today)$", name
        )
    ]


def code_problems(code: str) -> list[str]:
    """What exported code must not do.

    Relative and star imports, bare except, @patch, development tools, settings or the time read by itself, no
    docstring.
    """
    tree = ast.parse(code)
    problems = clock_problems(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            problems.append(f"line {node.lineno}: a relative import")
        if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
            problems.append(f"line {node.lineno}: a star import")
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            problems.append(f"line {node.lineno}: a bare except")
        for decorator in getattr(node, "decorator_list", []):
            if re.match(r"patch\b", ast.unparse(decorator)):
                problems.append(f"line {node.lineno}: @patch")
    tools = {name.split(".")[0] for name in imported(code, "fraud_poc")} & {
        "nbdev",
        "fastcore",
        "pytest",
        "hypothesis",
        "IPython",
    }
    problems += [f"imports {tool}, a tool for development only" for tool in sorted(tools)]
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            if not node.name.startswith("_") and not ast.get_docstring(node):
                problems.append(f"line {node.lineno}: {node.name} has no docstring")
        elif any(
            isinstance(n, ast.Call) and ast.unparse(n.func).split(".")[-1] == "load_settings" for n in ast.walk(node)
        ):
            problems.append(f"line {node.lineno}: settings are read when the module is imported")
    return problems


INSIDE = {"inner", "inlined", "pasted"}  # decorators after which a private function has no entry for Python
COMPILED = INSIDE | {"short", "compiled"}


def entry_problems(code: str) -> list[str]:
    "Calls, by functions that are not compiled, of functions that have no entry for Python: the process would crash."
    decorated = {
        node: {ast.unparse(decorator) for decorator in node.decorator_list}
        for node in ast.parse(code).body
        if isinstance(node, ast.FunctionDef)
    }
    without = {node.name for node, names in decorated.items() if node.name.startswith("_") and names & INSIDE}
    return [
        f"line {call.lineno}: {outer.name} calls {call.func.id}, which only compiled code can: make it @compiled"
        for outer, names in decorated.items()
        if not names & COMPILED
        for call in ast.walk(outer)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in without
    ]


# --- project files ----------------------------------------------------------------------------------------------------


def locked(text: str) -> dict[str, str]:
    "Name -> version of a lock file; `ValueError` for a line that does not pin one version."
    pins = {}
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        requirement = Requirement(line)
        versions = [s.version for s in requirement.specifier if s.operator == "=="]
        if len(requirement.specifier) != 1 or not versions:
            raise ValueError(f"'{line}' does not pin one version")
        pins[canonicalize_name(requirement.name)] = versions[0]
    return pins


def lock_problems(requirements: list[str], text: str) -> list[str]:
    "Requirements that a lock file lacks or pins outside of what they allow."
    pins, problems = locked(text), []
    for requirement in map(Requirement, requirements):
        version = pins.get(canonicalize_name(requirement.name))
        if version is None:
            problems.append(f"{requirement} is not in the lock file: run `make lock`")
        elif not requirement.specifier.contains(version, prereleases=True):
            problems.append(f"{requirement} is locked at {version}: run `make lock`")
    return problems


# in pieces, so that this file passes its own check
NOT_PUBLISHED = [
    "/" + "work/",
    "/tmp/" + "wt",
    "/tmp/" + "venv",
    "." + "library",
    "py" + "pi.org",
    "python" + "hosted.org",
    "npmjs" + ".org",
    "index" + "-url",
    "find" + "-links",
    "/opt/" + "pypi",
    "BEGIN " + "PRIVATE KEY",
]


def publishing_problems(text: str) -> list[str]:
    "What belongs to one machine, or is secret, and must not be in a file of the project."
    return [
        f"line {i}: '{word}'" for i, line in enumerate(text.splitlines(), 1) for word in NOT_PUBLISHED if word in line
    ]


# --- files and processes ----------------------------------------------------------------------------------------------


def memory() -> str | None:
    """The folder whose files lie in memory, where there is one with room; None = the usual folder.

    There a database of PostgreSQL is copied in 0.03 seconds, and on a disk of ext4 in 0.47.
    """
    folder = "/dev/shm"
    room = os.access(folder, os.W_OK) and shutil.disk_usage(folder).free > 2**30
    return folder if room else None


def tree(folder: Path) -> dict[str, str]:
    """Path -> fingerprint of every file below a folder, caches aside.

    Under data/, where files may be huge, size and time stand for content.
    """
    found = {}
    for base, folders, files in os.walk(folder):
        folders[:] = [f for f in folders if f not in CACHES and not f.endswith(".egg-info")]
        for path in (Path(base) / f for f in files):
            name, stat = path.relative_to(folder).as_posix(), path.lstat()
            small = path.is_file() and not name.startswith("data/")
            found[name] = (
                hashlib.sha256(path.read_bytes()).hexdigest() if small else f"{stat.st_size} {stat.st_mtime_ns}"
            )
    return found


def tree_difference(before: dict[str, str], after: dict[str, str]) -> list[str]:
    "What happened to files between two looks."
    return (
        [f"{name} is new" for name in sorted(after.keys() - before.keys())]
        + [f"{name} is gone" for name in sorted(before.keys() - after.keys())]
        + [f"{name} was changed" for name in sorted(before.keys() & after.keys()) if before[name] != after[name]]
    )


def project_files(root: Path) -> list[str]:
    "Files that git keeps or would take in; all files but caches and data where there is no git."
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=root, capture_output=True, text=True, check=True
        ).stdout
        return sorted(name for name in set(listed.split("\0")) if name and (root / name).is_file())
    except (OSError, subprocess.CalledProcessError):
        return sorted(name for name in tree(root) if not name.startswith("data/") or name == "data/README.md")


def shared_folder(root: Path) -> Path:
    "Where external data is looked for: FRAUD_POC_SHARED, else ../shared."
    return Path(os.environ.get("FRAUD_POC_SHARED") or root.parent / "shared").resolve()


def copy_project(root: Path, target: Path) -> Path:
    "A copy of the project's files, as a fresh clone would have them."
    for name in project_files(root):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / name, target / name)
    return target


def run(command: list[str], folder: Path, more: dict[str, str] | None = None, quiet: float = QUIET) -> str:
    """Run a tool of this environment in a copy of the project, which it imports.

    Raises `AssertionError` with its output if it fails or prints nothing for too long.
    """
    outer = ("PYTEST_", "PYTHONPATH", "COV_", "MAKE", "MFLAGS")  # meant for the run that this test is part of
    env = {k: v for k, v in os.environ.items() if not k.startswith(outer)}
    env |= {"PYTHONPATH": str(folder), "PATH": f"{Path(sys.executable).parent}{os.pathsep}{env.get('PATH', '')}"} | (
        more or {}
    )
    done = watched(command, quiet, cwd=folder, env=env)
    if done.returncode:
        raise AssertionError(
            f"`{' '.join(command)}` in {folder} ended with {done.returncode}:\n{done.stdout[-20_000:]}"
        )
    return done.stdout
