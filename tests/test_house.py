"""Each rule of the house can fail: it is shown something bad."""

import copy as copies
import json
import subprocess
import sys
from pathlib import Path

import pytest
from support import house

HERE = Path(__file__).resolve().parent


def md(text):
    return {"cell_type": "markdown", "id": "m", "metadata": {}, "source": text}


def py(text, *outputs):
    return {
        "cell_type": "code",
        "id": "c",
        "metadata": {},
        "execution_count": None,
        "outputs": list(outputs),
        "source": text,
    }


def shown(text):
    return {"output_type": "execute_result", "metadata": {}, "execution_count": None, "data": {"text/plain": text}}


def printed(text, name="stdout"):
    return {"output_type": "stream", "name": name, "text": [text]}


def image(size):
    return {
        "output_type": "display_data",
        "metadata": {},
        "data": {"image/png": "A" * size, "text/plain": "<Figure size 640x480 with 1 Axes>"},
    }


def good():
    "A small notebook without fault."
    return {
        "metadata": {},
        "nbformat": 4,
        "nbformat_minor": 5,
        "cells": [
            md("# Doubles\n\n> Numbers, twice."),
            py("#| default_exp doubles"),
            md("Why would anybody double a number? Because two of them are more than one."),
            py('#| export\ndef double(x: int) -> int:\n    "Twice the number."\n    return 2 * x'),
            py("double(2)", shown("4")),
            md("## Test\n\nZero stays zero."),
            py("assert double(0) == 0"),
        ],
    }


def with_cells(edit):
    notebook = copies.deepcopy(good())
    edit(notebook["cells"])
    return notebook


def test_a_good_notebook_has_no_problems():
    assert (
        house.notebook_problems(good())
        == house.output_problems(good())
        == house.code_problems(house.source(good()["cells"][3]))
        == []
    )
    assert house.pairing_problems({"000_doubles": good()}, {"doubles"}) == []


@pytest.mark.parametrize(
    "edit, problem",
    [
        (lambda c: c.__setitem__(0, md("# Doubles")), "first cell"),
        (lambda c: c.pop(0), "first cell"),
        (lambda c: c.__setitem__(0, md("## Doubles\n\n> Numbers.")), "first cell"),
        (lambda c: c.pop(1), "go together"),
        (lambda c: c.insert(4, py("#| export\n" + "x = 1\n" * (house.CLASS_LINES + 1))), "lines, more"),
        (lambda c: c.insert(4, py("#| export\ndef f():\n" + "    x = 1\n" * house.FUNCTION_LINES)), "f has"),
        (lambda c: c.__setitem__(6, py("print(double(0))")), "no assertion"),
        (lambda c: c.__setitem__(6, py("#| export\nassert True")), "no assertion"),
        (lambda c: c.insert(2, md("why " * 151)), "introduction"),
        (lambda c: c.__setitem__(5, md("## Examples")), "last section"),
        (lambda c: c.append(md("## After all")), "last section"),
        (lambda c: c.insert(4, c.pop(6)), "asserts nothing"),
    ],
)
def test_a_bad_notebook_is_seen(edit, problem):
    assert any(problem in p for p in house.notebook_problems(with_cells(edit)))


@pytest.mark.parametrize(
    "code",
    [
        "x = 1\n" * house.CLASS_LINES,
        "import os\n" + "\nx = 1\n" * house.CLASS_LINES,
        "def f():\n" + "    x = 1\n" * (house.FUNCTION_LINES - 1),
        "class C:\n" + "    x = 1\n" * (house.CLASS_LINES - 1),
    ],
)
def test_code_that_fits_is_not_too_long(code):
    cells = with_cells(lambda c: c.insert(4, py("#| export\n" + code)))
    assert not any("lines, more" in p for p in house.notebook_problems(cells))


@pytest.mark.parametrize(
    "output, problem",
    [
        (shown("x" * 21_000), "saved outputs take"),
        (image(150_001), "an image takes"),
        ({"output_type": "error", "ename": "ValueError", "evalue": "no", "traceback": []}, "a cell failed: ValueError"),
        (printed("careful!", "stderr"), "warning or a progress bar"),
        (printed("written to /home/ann/project/data\n"), "path of this machine"),
        (printed("written to /tmp/abc\n"), "path of this machine"),
        (printed("<function double at 0x7fd2a11b0c20>\n"), "address in memory"),
        (shown("<function double at 0xffff8>"), "address in memory"),
        (printed("Wall time: 3 ms\n"), "measured time"),
        (printed("1%| 3/300 [00:01<00:42, 7.00it/s]"), "measured time"),
        (printed("\x1b[31mred\x1b[0m"), "control characters"),
    ],
)
def test_a_bad_output_is_seen(output, problem):
    assert any(problem in p for p in house.output_problems(with_cells(lambda c: c[4]["outputs"].append(output))))


def test_many_images_and_run_times_are_seen():
    assert any(
        "7 images" in p
        for p in house.output_problems(with_cells(lambda c: c[4]["outputs"].extend(image(9) for _ in range(7))))
    )
    assert any(
        "time at which it ran" in p
        for p in house.output_problems(with_cells(lambda c: c[4]["metadata"].update(execution={})))
    )
    assert house.output_problems(with_cells(lambda c: c[4]["outputs"].extend(image(100_000) for _ in range(4)))) == []


@pytest.mark.parametrize(
    "notebooks, modules, problem",
    [
        ({"000_doubles": good()}, {"doubles", "triples"}, "triples has no notebook"),
        ({"000_doubles": good()}, set(), "which does not exist"),
        ({"doubles": good()}, {"doubles"}, "number of three digits"),
        ({"000_doubles": good(), "000_other": {"cells": []}}, {"doubles"}, "have one number"),
        ({"000_doubles": good(), "010_doubles": good()}, {"doubles"}, "both export"),
    ],
)
def test_orphans_are_seen(notebooks, modules, problem):
    assert any(problem in p for p in house.pairing_problems(notebooks, modules))


def test_long_lines_are_seen():
    long, listed = f'x = "{"y" * house.LINE}"', f"__all__ = ['{'y' * house.LINE}',\n           '{'z' * house.LINE}']"
    assert house.line_problems(f"{listed}\n{'z' * house.LINE}\n") == []
    assert house.line_problems(f"{listed}\n{long}\n") == [f"line 3 has {len(long)} characters, more than {house.LINE}"]


def test_only_migrations_need_no_notebook():
    for name in ("desk/migrations/env.py", "desk/migrations/versions/0001_decisions.py"):
        assert house.is_migration(Path("fraud_poc") / name)
    for name in ("desk/database.py", "migrations/env.py", "desk/migrations.py", "live/migrations/versions/x.py"):
        assert not house.is_migration(Path("fraud_poc") / name)


FLOORS = {"config": 0, "events": 1, "data.files": 2, "data.sample": 3, "features.table": 6}


@pytest.mark.parametrize(
    "code, higher",
    [
        ("from fraud_poc.features.table import f", "features.table"),
        ("import fraud_poc.features.table", "features.table"),
        ("from fraud_poc.features import table", "features.table"),
        ("from ..features.table import f", "features.table"),
        ("def f():\n    from fraud_poc import features, events\n    from fraud_poc.data import sample", "data.sample"),
        ("from .sample import f", "data.sample"),
    ],
)
def test_an_import_from_above_is_seen(code, higher):
    assert house.floor_problems("data.sample", code, FLOORS, 3) == [
        f"data.sample (floor 3) imports {higher} (floor {FLOORS[higher]})"
    ]


def test_imports_from_below_are_fine():
    code = (
        "import numpy\nfrom fraud_poc import events\nfrom ..config import Columns\nfrom .files import write_aside\n"
        "import fraud_poc.core.files"
    )
    assert house.floor_problems("data.sample", code, FLOORS, 3) == []


@pytest.mark.parametrize(
    "code, problem",
    [
        ("from os import *", "star import"),
        ("from .events import f", "relative import"),
        ("try: f()\nexcept: pass", "bare except"),
        ("import nbdev", "imports nbdev"),
        ("def f():\n    'F.'\n    from fastcore.test import test_eq", "imports fastcore"),
        ("@patch\ndef f(self: int):\n    'F.'", "@patch"),
        ("def f(): return 1", "f has no docstring"),
        ("class F: pass", "F has no docstring"),
        ("import time\ndef f(clock=time.time):\n    'F.'", "time.time: take a `Clock`"),
        ("def f():\n    'F.'\n    return datetime.now(UTC), date.today()", "date.today: take"),
        ("S = load_settings('x')", "when the module is imported"),
        ("columns = config.load_settings('x').columns", "when the module is imported"),
    ],
)
def test_bad_code_is_seen(code, problem):
    assert any(problem in p for p in house.code_problems(code))


@pytest.mark.parametrize("decorator", sorted(house.COMPILED))
def test_a_call_without_an_entry_is_seen(decorator):
    code = f"@{decorator}\ndef _f(x): return x\n@short\ndef g(x): return _f(x)\ndef h(x): return _f(x)"
    assert bool(house.entry_problems(code)) == (decorator in house.INSIDE)
    assert house.entry_problems(code.replace("_f", "f")) == []


def test_good_code_and_declared_imports_are_fine():
    assert (
        house.code_problems(
            "def system_clock():\n    'Now.'\n    return time.time_ns()\ndef f(now):\n    'F.'\n"
            "    return time.monotonic(), datetime.fromtimestamp(now)"
        )
        == []
    )
    assert (
        house.code_problems(
            "try: f()\nexcept ValueError: pass\ndef g():\n    'G.'\n    return load_settings('x')\ndef _h(): return 1"
        )
        == []
    )
    given = ["numpy>=2", "dask[distributed]>=2026.8"]
    assert (
        house.dependency_problems(
            "import os, numpy as np\nfrom dask.distributed import Client\nimport distributed\nfrom . import config",
            given,
        )
        == []
    )
    assert house.dependency_problems("import polars\nimport os", given) == [
        "imports polars, which is no runtime requirement"
    ]


def test_a_lock_file_that_lags_behind_is_seen():
    text = "# made by hand\nnumpy==2.4.6\nDask==2026.8.0 ; sys_platform == 'linux'\n"
    assert house.lock_problems(["numpy>=2.4", "dask[distributed]>=2026.8"], text) == []
    assert "locked at 2.4.6" in house.lock_problems(["numpy>=2.5"], text)[0]
    assert "not in the lock file" in house.lock_problems(["pandas"], text)[0]
    with pytest.raises(ValueError, match="does not pin"):
        house.locked("numpy>=2")


@pytest.mark.parametrize("word", house.NOT_PUBLISHED)
def test_what_must_not_be_published_is_seen(word):
    assert house.publishing_problems(f"fine\nsee x{word}y") == [f"line 2: '{word}'"]
    assert house.publishing_problems("data lies under ../shared or a workplace of your own") == []


def test_a_changed_tree_is_seen(tmp_path):
    for name in ("kept", "changed", "gone", "data/big"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("one")
    before = house.tree(tmp_path)
    (tmp_path / "gone").unlink()
    (tmp_path / "changed").write_text("two")
    (tmp_path / "data" / "big").write_text("three")
    (tmp_path / "data" / "new").write_text("four")
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "x.pyc").write_text("a cache is nobody's business")
    assert house.tree_difference(before, house.tree(tmp_path)) == [
        "data/new is new",
        "gone is gone",
        "changed was changed",
        "data/big was changed",
    ]


@pytest.mark.parametrize("options", [[], ["-n", "2"]], ids=["alone", "two_workers"])
def test_tests_that_leave_something_behind_fail_the_run(tmp_path, options):
    (tmp_path / "tests" / "support").mkdir(parents=True)
    used = ["conftest.py", *(f"support/{name}.py" for name in ("__init__", "databases", "house", "waiting"))]
    for name in used:
        (tmp_path / "tests" / name).write_text((HERE / name).read_text())
    (tmp_path / "tests" / "test_leftovers.py").write_text(
        "import os\ndef test_file(root): (root / 'left.txt').write_text('x')\n"
        "def test_variable(): os.environ['LEFT'] = '1'\ndef test_folder(): os.chdir('/')\n"
        "def test_tidy(monkeypatch): monkeypatch.setenv('LEFT_NOT', '1')\ndef test_shared(shared): pass\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", *options, "tests"]
    env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path / "home"), "FRAUD_POC_SHARED": str(tmp_path / "absent")}
    if not options:
        only_file = subprocess.run(
            [*command, "-k", "test_file or test_tidy"], cwd=tmp_path, env=env, capture_output=True, text=True
        )
        assert (
            only_file.returncode == 1
            and "left.txt is new" in only_file.stdout
            and "2 passed" in only_file.stdout.splitlines()[-1]
        )
    everything = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    if options:
        assert "left.txt is new" in everything.stdout
    assert (
        everything.returncode == 1
        and "variables changed: LEFT." in everything.stdout
        and "working directory at /" in everything.stdout
    )
    assert (
        "set FRAUD_POC_SHARED" in everything.stdout
        and "LEFT_NOT" not in everything.stdout.split("short test summary")[0]
    )


def test_the_copy_of_a_project_is_what_git_would_clone(tmp_path):
    folder = tmp_path / "project"
    (folder / "data").mkdir(parents=True)
    for name, text in [
        (".gitignore", "data/*\n!data/README.md\n"),
        ("data/README.md", "x"),
        ("data/big", "x"),
        ("new.py", "x"),
    ]:
        (folder / name).write_text(text)
    assert house.project_files(folder) == [".gitignore", "data/README.md", "new.py"]
    subprocess.run(["git", "init", "-q", folder], check=True)
    assert house.project_files(folder) == [".gitignore", "data/README.md", "new.py"]
    assert house.tree(house.copy_project(folder, tmp_path / "copy")).keys() == {
        ".gitignore",
        "data/README.md",
        "new.py",
    }
    assert json.dumps(house.tree(folder)).count("data/big") == 1
