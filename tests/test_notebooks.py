"""All notebooks run in a copy of the project and leave nothing behind: side by side, or with `--notebooks-serially`."""

import json

import pytest
from support import house


@pytest.fixture(scope="module")
def copy(root, tmp_path_factory):
    "A copy of the project that shares its compiled code with it, so that neither run compiles for itself alone."
    folder = house.copy_project(root, tmp_path_factory.mktemp("notebooks") / "project")
    for package in {path.parent for path in (folder / "fraud_poc").rglob("*.py")}:
        compiled = root / package.relative_to(folder) / "__pycache__"
        compiled.mkdir(exist_ok=True)
        (package / "__pycache__").symlink_to(compiled)
    return folder


def test_all_notebooks_pass(root, copy, request):
    before, workers = house.tree(copy), 1 if request.config.getoption("--notebooks-serially") else 2
    found = {"FRAUD_POC_SHARED": str(house.shared_folder(root))}  # ../shared of the copy is another folder
    print(house.run(["nbdev_test", "--n_workers", str(workers), "--do_print", "--timing"], copy, found))
    assert house.tree_difference(before, house.tree(copy)) == []


def test_a_failing_notebook_is_seen(root, tmp_path):
    (tmp_path / "nbs").mkdir()
    (tmp_path / "settings.ini").write_text((root / "settings.ini").read_text())
    cell = {
        "cell_type": "code",
        "id": "a",
        "metadata": {},
        "outputs": [],
        "execution_count": None,
        "source": "assert 1 + 1 == 3",
    }
    (tmp_path / "nbs" / "000_bad.ipynb").write_text(
        json.dumps({"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5})
    )
    with pytest.raises(AssertionError, match="(?s)ended with 1.*1 \\+ 1 == 3"):
        house.run(["nbdev_test", "--n_workers", "1"], tmp_path)
