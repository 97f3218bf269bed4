"""The project as a whole keeps the rules of the house."""

import configparser
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from support import house

from fraud_poc.core.settings import load_settings
from fraud_poc.core.terminal import parse_overrides
from fraud_poc.demo import demo_settings

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = {
    path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "nbs").glob("[!._]*.ipynb"))
}
EXPORTING = {name: notebook for name, notebook in NOTEBOOKS.items() if house.module_of(notebook)}
FLOORS = {house.module_of(notebook): house.floor_of(name) for name, notebook in EXPORTING.items()}
MODULES = {
    ".".join(path.relative_to(ROOT / "fraud_poc").with_suffix("").parts): path
    for path in sorted((ROOT / "fraud_poc").rglob("*.py"))
    if path.name not in ("__init__.py", "_modidx.py") and not house.is_migration(path)
}
every_notebook = pytest.mark.parametrize("name", NOTEBOOKS)
every_module = pytest.mark.parametrize("module", MODULES)


@pytest.fixture(scope="module")
def project():
    "settings.ini, as setup.py reads it."
    config = configparser.ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    return config["DEFAULT"]


@pytest.fixture
def copy(tmp_path):
    return house.copy_project(ROOT, tmp_path / "project")


def files(folder: Path, below: str) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted((folder / below).rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


# --- notebooks and modules --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["nbdev_export", "nbdev_build_lib"])
def test_export_leaves_no_difference(copy, command):
    for path in (copy / "fraud_poc").rglob(
        "*.py"
    ):  # all of the package comes from the notebooks, _modidx.py included, but for the migrations
        if not house.is_migration(path):
            path.unlink()
    house.run([command], copy)
    assert files(copy, "fraud_poc") == files(ROOT, "fraud_poc")


def test_clean_leaves_no_difference(copy):
    house.run(["nbdev_clean"], copy)
    assert files(copy, "nbs") == files(ROOT, "nbs")


def test_every_module_has_its_notebook_and_every_notebook_its_module():
    assert NOTEBOOKS and MODULES
    assert house.pairing_problems(NOTEBOOKS, set(MODULES)) == []


@pytest.mark.parametrize("command", [["ruff", "format", "--check"], ["ruff", "check"]], ids=" ".join)
def test_notebooks_tests_benchmarks_and_migrations_are_formatted_and_linted(command):
    house.run([*command, ".", "fraud_poc/desk/migrations"], ROOT)


@every_notebook
def test_notebook_keeps_the_rules(name):
    assert house.notebook_problems(NOTEBOOKS[name]) == []


@every_notebook
def test_saved_outputs_are_small_and_the_same_everywhere(name):
    assert house.output_problems(NOTEBOOKS[name]) == []


@every_notebook
def test_exported_cells_keep_the_rules(name):
    for cell in filter(house.is_exported, NOTEBOOKS[name]["cells"]):
        assert house.code_problems(house.source(cell)) == []


@every_notebook
def test_examples_import_no_higher_floor(name):
    code = [
        re.sub(r"^(\s*)[%!](?=[\w%]).*", r"\1pass", house.source(cell), flags=re.M)
        for cell in NOTEBOOKS[name]["cells"]
        if cell["cell_type"] == "code"
    ]
    for text in code:
        assert house.floor_problems(name, text, FLOORS, house.floor_of(name) + 1) == []


@every_module
def test_module_imports_only_lower_floors(module):
    assert house.floor_problems(module, MODULES[module].read_text(encoding="utf-8"), FLOORS, FLOORS[module]) == []


@every_module
def test_module_has_no_long_lines(module):
    assert house.line_problems(MODULES[module].read_text(encoding="utf-8")) == []


@every_module
def test_python_calls_no_function_without_an_entry(module):
    assert house.entry_problems(MODULES[module].read_text(encoding="utf-8")) == []


@every_module
def test_module_needs_only_runtime_requirements(module, project):
    assert house.dependency_problems(MODULES[module].read_text(encoding="utf-8"), project["requirements"].split()) == []


def test_migrations_are_plain_files_that_are_installed_and_stand_alone(project):
    from setuptools import find_packages

    assert {"fraud_poc.desk.migrations", "fraud_poc.desk.migrations.versions"} <= set(
        find_packages(str(ROOT), include=["fraud_poc*"])
    )
    paths = [
        path
        for path in sorted((ROOT / "fraud_poc").rglob("*.py"))
        if house.is_migration(path) and path.name != "__init__.py"
    ]
    assert "0001_decisions.py" in [path.name for path in paths]
    for path in paths:
        text = path.read_text(encoding="utf-8")
        assert house.dependency_problems(text, project["requirements"].split()) == [], path
        assert not any(name.startswith("fraud_poc") for name in house.imported(text)), (
            f"{path} must stay as it is when the program changes"
        )


# --- versions and metadata --------------------------------------------------------------------------------------------


def test_lock_files_satisfy_the_settings(project):
    runtime, development = project["requirements"].split(), project["dev_requirements"].split()
    text = {name: (ROOT / name).read_text() for name in ("requirements.lock", "requirements-dev.lock")}
    assert house.lock_problems(runtime, text["requirements.lock"]) == []
    assert house.lock_problems(runtime + development, text["requirements-dev.lock"]) == []
    small, large = house.locked(text["requirements.lock"]), house.locked(text["requirements-dev.lock"])
    assert small.items() <= large.items(), "the two lock files disagree: run `make lock`"
    assert not {"nbdev", "fastcore", "pytest", "hypothesis", "jupyterlab"} & small.keys(), (
        "the runtime lock file holds development tools"
    )


def test_tools_that_only_an_import_can_check():
    import nbdev.clean  # noqa: F401  with other versions of what nbdev stands on, `pip check` is content and this fails
    import nbdev.doclinks  # noqa: F401
    import nbdev.test  # noqa: F401


def test_setup_hands_over_the_settings(copy, project, tmp_path):
    house.run(["python", "setup.py", "-q", "egg_info", "--egg-base", str(tmp_path)], copy)
    info = next(tmp_path.glob("*.egg-info"))
    fields = (info / "PKG-INFO").read_text()
    for field, value in [
        ("Name", "fraud_poc"),
        ("Version", project["version"]),
        ("Summary", project["description"]),
        ("Requires-Python", ">=" + project["min_python"]),
        ("License", "Apache-2.0"),
    ]:
        assert re.search(rf"^{field}(?:-Expression)?: {re.escape(value)}$", fields, re.M), (
            f"{field} is not {value} in:\n{fields}"
        )
    commands = re.sub(r"\s*=\s*", "=", (info / "entry_points.txt").read_text()).split()
    assert {"fraud-poc=fraud_poc.cli:main", "nbdev_build_lib=nbdev.doclinks:nbdev_export"} <= set(commands)
    from fraud_poc import __version__

    assert __version__ == project["version"]


def test_licence_is_apache_2():
    text = (ROOT / "LICENSE").read_text()
    assert (
        "Apache License\n                           Version 2.0, January 2004" in text
        and "END OF TERMS AND CONDITIONS" in text
    )


# --- commands and files -----------------------------------------------------------------------------------------------


def test_git_keeps_data_without_its_contents(tmp_path):
    if not shutil.which("git"):
        pytest.skip("git is not installed")
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    shutil.copy(ROOT / ".gitignore", tmp_path)
    names = [
        "data/README.md",
        "data/orders/log/x.parquet",
        "data/x.csv",
        "docker/.env",
        "fraud_poc/core/settings.py",
        ".venv/x",
        "nbs/005_settings.ipynb",
    ]
    ignored = subprocess.run(
        ["git", "-C", tmp_path, "check-ignore", "--no-index", *names], capture_output=True, text=True
    ).stdout.split()
    assert ignored == ["data/orders/log/x.parquet", "data/x.csv", "docker/.env", ".venv/x"]
    assert (ROOT / "data" / "README.md").is_file()


def test_targets_run_their_commands(copy):
    if not shutil.which("make"):
        pytest.skip("make is not installed")
    for target, command in [
        ("demo", "fraud-poc demo --json"),
        ("test", "python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --json"),
        ("lab", "jupyter lab"),
    ]:
        output = house.run(["make", "--dry-run", target, "ARGS=--json", "WORKERS=2"], copy)
        assert command in output and "requirements-dev.lock" in output, f"make {target} would run:\n{output}"


def test_a_change_is_checked_by_one_command():
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert (ROOT / ".ci" / "run").read_text().rstrip().endswith("exec make test")
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    assert [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step] == ["make test"]


def test_containers_have_no_default_secret_and_no_root():
    text = (ROOT / "docker" / "compose.yml").read_text()
    services = yaml.safe_load(text)["services"]
    assert {"redis", "scheduler", "worker", "jupyter"} <= services.keys()
    assert "--appendonly yes" in services["redis"]["command"][-1] and "requirepass" in services["redis"]["command"][-1]
    assert "--maxmemory-policy noeviction" in services["redis"]["command"][-1]
    secrets = {name: value for service in services.values() for name, value in service.get("environment", {}).items()}
    address = secrets.pop("FRAUD_POC_REDIS_URL")
    assert address.startswith("redis://:${REDIS_PASSWORD:?") and address.endswith("}@redis:6379/0")
    assert secrets.keys() == {"REDIS_PASSWORD", "JUPYTER_TOKEN"}
    for name, value in secrets.items():
        assert value.startswith(f"${{{name}:?"), f"{name} must be set by whoever starts the services"
    for service in services.values():
        assert "REDIS_PASSWORD}" not in str(service.get("command")), "a command line can be read by every process"
    published = [port for service in services.values() for port in service.get("ports", [])]
    assert published and all(port.startswith("127.0.0.1:") for port in published)
    stages = re.split(r"^FROM ", (ROOT / "docker" / "Dockerfile").read_text(), flags=re.M)[1:]
    final = [stage for stage in stages if "CMD" in stage]
    assert (
        len(final) == 2
        and all("USER fraud" in stage for stage in final)
        and 'CMD ["fraud-poc", "--help"]' in stages[-1]
    )


def test_the_container_serves_with_words_that_the_command_knows():
    scoring = yaml.safe_load((ROOT / "docker" / "compose.yml").read_text())["services"]["scoring"]
    program, *words = scoring["command"]
    assert (program, words[0]) == ("fraud-poc", "serve") and scoring["depends_on"]["redis"][
        "condition"
    ] == "service_healthy"
    assert "http://127.0.0.1:8000/readyz" in scoring["healthcheck"]["test"][-1]
    compile(scoring["healthcheck"]["test"][-1], "healthcheck", "exec")
    assert scoring["volumes"] == ["../data:/app/data"], "log, models and the hashes of keys are in the data folder"
    settings = load_settings(ROOT / "config" / "orders.toml", parse_overrides([w for w in words[1:] if w != "--set"]))
    assert settings.service.host == "0.0.0.0" and scoring["ports"] == [
        f"127.0.0.1:{settings.service.port}:{settings.service.port}"
    ]


def test_the_environment_may_name_the_store(monkeypatch, tmp_path):
    monkeypatch.setenv("FRAUD_POC_REDIS_URL", "redis://:not-for-logs@redis:6379/0")
    settings = load_settings(ROOT / "config" / "orders.toml", {"batch.folder": str(tmp_path)})
    assert settings.live.redis_url == "redis://:not-for-logs@redis:6379/0"
    assert demo_settings(settings).live.redis_url == "", "the demo would replace what is in somebody's store"
    with pytest.raises(ValueError, match="live") as caught:
        load_settings(ROOT / "config" / "orders.toml", {"live.future_skew": "soon"})
    assert "soon" in str(caught.value) and "not-for-logs" not in str(caught.value)


def test_nothing_of_one_machine_is_published():
    for name in house.project_files(ROOT):
        assert house.publishing_problems((ROOT / name).read_text(encoding="utf-8", errors="replace")) == [], name


@pytest.mark.parametrize("path", sorted(ROOT.glob("benchmarks/*.py")), ids=lambda path: path.stem)
def test_a_benchmark_reads_only_options_that_it_declares(path):
    text = path.read_text()
    declared = {name.replace("-", "_") for name in re.findall(r'add_argument\(\s*"(?:--)?([\w-]+)"', text)}
    assert set(re.findall(r"\boptions\.(\w+)", text)) <= declared
