"""The pages for readers are true: figures come from imports, links lead somewhere, terms and commands exist."""

import json
import re
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "docs"))
import architecture  # noqa: E402

PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [*architecture.PAGES, ROOT / "examples" / "README.md"]
}
WRITTEN_BY_HAND = [name for name in PAGES if name != "docs/model.md"]  # which `fraud-poc model-page` writes
LINE, README_WORDS = 120, 1_000
ENTRY = re.compile(
    r"^\*\*([^*]+)\*\* (.+?)\s\[([a-z_.]+)\]$", re.MULTILINE | re.DOTALL
)  # term, text, label of the notebook
COMMAND_GROUPS = ("keys", "accounts", "audit")  # words between `fraud-poc` and a command
every_page = pytest.mark.parametrize("name", WRITTEN_BY_HAND)


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def plain(text: str) -> str:
    "Text to search for a term in: small letters, without hyphens, underscores and line breaks."
    return re.sub(r"[\s_-]+", " ", text.lower())


# --- architecture -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def modules():
    return architecture.read_modules()


@pytest.fixture(scope="module")
def folders(modules):
    return architecture.folder_graph(modules, architecture.import_graph(modules))


@pytest.fixture(scope="module")
def written():
    return architecture.written()


@every_page
def test_pages_are_as_the_script_writes_them(name, written):
    assert written.get(ROOT / name, PAGES[name]) == PAGES[name], "run `python docs/architecture.py`"


@pytest.mark.parametrize("changed, code", [("", 0), ("a figure", f"{architecture.PAGES[0].name} differs")])
def test_the_script_ends_with_a_code(monkeypatch, changed, code):
    page = architecture.PAGES[0]
    text = page.read_text(encoding="utf-8") + changed
    monkeypatch.setattr(architecture, "written", lambda: {page: text})
    monkeypatch.setattr(sys, "argv", ["architecture.py", "--check"])
    with pytest.raises(SystemExit) as end:
        architecture.main()
    assert end.value.code == 0 if code == 0 else end.value.code.startswith(code)


def test_no_folders_import_each_other(folders):
    assert {"core", "data", "features", "model", "live", "service", "desk", "ops", "app", "cli"} <= folders.keys()
    try:
        TopologicalSorter(folders).prepare()
    except CycleError as error:
        pytest.fail(f"folders import each other: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("folder", ["service", "live"])
def test_serving_imports_nothing_of_desk_and_operations(folders, folder):
    assert folders[folder] & {"desk", "ops", "app", "cli"} == set()


def test_imports_are_read_in_every_form(tmp_path):
    files = {
        "core/files.py": "import json",
        "data/log.py": "from ..core import files\nimport fraud_poc.core.files",
        "model/train.py": "def run():\n    from fraud_poc.data.log import read\n    import fraud_poc.core.files as f",
        "desk/migrations/one.py": "import fraud_poc.model.train",
        "app.py": "from .model.train import run\nfrom . import data\nimport fraud_pocket.model",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    modules = architecture.read_modules(tmp_path)
    assert architecture.import_graph(modules) == {
        "app": {"model.train"},
        "core.files": set(),
        "data.log": {"core.files"},
        "model.train": {"data.log", "core.files"},
    }
    assert architecture.import_graph(modules, lazy=False)["model.train"] == set()


def test_shortcuts_are_left_out_unless_there_is_a_cycle():
    assert architecture.without_shortcuts({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == {
        "a": {"b"},
        "b": {"c"},
        "c": set(),
    }
    cycle = {"a": {"b"}, "b": {"a"}}
    assert architecture.without_shortcuts(cycle) == cycle


# --- links and words --------------------------------------------------------------------------------------------------


def anchors(text: str) -> set[str]:
    "Headings as a link names them."
    headings = re.findall(r"^#+ (.+)$", without_code(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_page
def test_every_link_leads_somewhere(name):
    text, folder = without_code(PAGES[name]), (ROOT / name).parent
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"^\[[^\]]+\]: (\S+)$", text, re.MULTILINE)
    for target in targets:
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        file = (folder / path).resolve() if path else ROOT / name
        assert file.exists(), f"{name} links to {target}: there is no {file}"
        assert not anchor or anchor in anchors(file.read_text(encoding="utf-8")), f"{name} links to {target}"
    used = set(re.findall(r"\]\[([a-z_.]+)\]", text))
    assert used <= {label for label, _ in architecture.REFERENCE.findall(text)}, f"{name} has links without a target"
    assert architecture.unknown_labels(text) == []


@every_page
def test_lines_fit(name):
    text = re.sub(r"^(\||\[[^\]]+\]: ).*$", "", without_code(PAGES[name]), flags=re.MULTILINE)
    assert [line for line in text.splitlines() if len(line) > LINE] == []


def test_the_front_page_is_one_page():
    assert len(PAGES["README.md"].split()) <= README_WORDS


@pytest.fixture(scope="module")
def commands(modules):
    return set(architecture.command_rooms(modules))


@every_page
def test_commands_exist(name, commands):
    for words in re.findall(r"fraud-poc ((?:[a-z][a-z-]* ?){1,2})", PAGES[name]):
        word, *more = words.split()
        if word in COMMAND_GROUPS:
            word = more[0] if more else "list"
        assert word in commands, f"{name}: fraud-poc {words}"
    for path in re.findall(r"\b(?:benchmarks|tests|docs)/\w+\.py\b", PAGES[name]):
        assert (ROOT / path).is_file(), f"{name}: {path}"


def test_every_measurement_has_its_command_and_date():
    for section in re.split(r"^## ", PAGES["docs/benchmarks.md"], flags=re.MULTILINE)[1:]:
        assert re.search(r"python benchmarks/|fraud-poc |make test", section) and re.search(
            r"20\d\d-\d\d-\d\d", section
        ), section


# --- glossary ---------------------------------------------------------------------------------------------------------


ENTRIES = ENTRY.findall(PAGES["docs/glossary.md"])


def test_the_glossary_is_sorted_and_complete():
    paragraphs = re.findall(r"^\*\*", PAGES["docs/glossary.md"], re.MULTILINE)
    assert len(ENTRIES) == len(paragraphs), "each entry is `**Term** text [module]`"
    terms = [term.lower() for term, _, _ in ENTRIES]
    assert terms == sorted(set(terms))
    for term, text, _ in ENTRIES:
        assert len(re.findall(r"[.:]( |$)", plain(text))) >= 2, f"{term}: two sentences"


@cache
def plain_source(stem: str) -> str:
    cells = json.loads((ROOT / "nbs" / f"{stem}.ipynb").read_text(encoding="utf-8"))["cells"]
    return plain("\n".join("".join(cell["source"]) for cell in cells))


@pytest.mark.parametrize(("term", "label"), [(term, label) for term, _, label in ENTRIES])
def test_the_notebook_of_a_term_contains_it(term, label):
    stem = architecture.notebook_labels().get(label)
    assert stem, f"no notebook exports {label}: link {term} to another one"
    assert plain(term) in plain_source(stem), f"{stem} does not contain {term}"
