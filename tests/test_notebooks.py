"""All notebooks run in a copy of the project, serially and side by side, and leave nothing behind."""
import json
import os

import pytest

import house

SECONDS = float(os.environ.get("FRAUD_POC_NOTEBOOK_SECONDS", 2400))


@pytest.fixture(scope="module")
def copy(root, tmp_path_factory):
    return house.copy_project(root, tmp_path_factory.mktemp("notebooks") / "project")


@pytest.mark.parametrize("workers", [1, 2], ids=["serially", "in_parallel"])
def test_all_notebooks_pass(root, copy, workers):
    before = house.tree(copy)
    found = {"FRAUD_POC_SHARED": str(house.shared_folder(root))}  # ../shared of the copy is another folder
    house.run(["nbdev_test", "--n_workers", str(workers), "--do_print", "--timing"], copy, SECONDS, found)
    assert house.tree_difference(before, house.tree(copy)) == []


def test_a_failing_notebook_is_seen(root, tmp_path):
    (tmp_path / "nbs").mkdir()
    (tmp_path / "settings.ini").write_text((root / "settings.ini").read_text())
    cell = {"cell_type": "code", "id": "a", "metadata": {}, "outputs": [], "execution_count": None, "source": "assert 1 + 1 == 3"}
    (tmp_path / "nbs" / "00_bad.ipynb").write_text(json.dumps({"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    with pytest.raises(AssertionError, match="(?s)ended with 1.*1 \\+ 1 == 3"): house.run(["nbdev_test", "--n_workers", "1"], tmp_path, 60)


def test_a_hanging_command_is_stopped(tmp_path):
    with pytest.raises(AssertionError, match="stopped after 1 seconds"): house.run(["sleep", "60"], tmp_path, 1)
