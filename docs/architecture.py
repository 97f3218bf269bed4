"""Draw the figures of architecture.md from the imports of the code, and repair the links to notebooks in all pages.

    python docs/architecture.py [--check]

The script reads every module of fraud_poc/ and every notebook of nbs/. It writes what lies between the markers
`<!-- NAME: ... -->` and `<!-- end -->` of docs/architecture.md: figures as Mermaid text, and the table of notebooks.
In README.md, CONTRIBUTING.md and docs/*.md, a link to a notebook is a reference by the module that the notebook
exports (or by the name of the notebook, where it exports none): `[240_table][features.table]` in the text, and
`[features.table]: nbs/240_table.ipynb` at the end of the page. Number and path are repaired; a module that no notebook
exports is an error. With --check the script writes nothing, and ends with code 1 when a page differs.
"""

import argparse
import ast
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architecture.md"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
REFERENCE = re.compile(r"^\[([a-z_.]+)\]: (\S+\.ipynb)$", re.MULTILINE)  # label and path of a link to a notebook
PACKAGE = "fraud_poc"
BATCH = ("ingest", "features", "dataset", "train", "evaluate", "prepare-db")  # commands, in the order in which they run
LIVE = ("serve",)
EVERYWHERE = "core"  # the folder that all others import: it is left out of the figures of rooms

Graph = dict[str, set[str]]  # importer -> imported


@dataclass(frozen=True)
class Module:
    "One file of the package."

    name: str  # below the package, such as data.ingest
    tree: ast.Module

    @property
    def folder(self) -> str:
        "The folder that it lies in; a module at the top is a folder of its own."
        return self.name.split(".")[0]


def read_modules(package: Path = ROOT / PACKAGE) -> dict[str, Module]:
    "All modules of the package by name; migrations of the database are no part of it."
    modules = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        if parts[-1] not in ("__init__", "_modidx") and "migrations" not in parts:
            name = ".".join(parts)
            modules[name] = Module(name, ast.parse(path.read_text(encoding="utf-8")))
    return modules


def targets_of(module: str, node: ast.AST) -> Iterator[str]:
    "Dotted names below the package that an import statement may mean."
    if isinstance(node, ast.Import):
        for alias in node.names:
            if alias.name.startswith(f"{PACKAGE}."):
                yield alias.name.removeprefix(f"{PACKAGE}.")
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            above = module.split(".")[: -node.level]
            base = ".".join([*above, *filter(None, [base])])
        elif base == PACKAGE or base.startswith(f"{PACKAGE}."):
            base = base.removeprefix(PACKAGE).removeprefix(".")
        else:
            return
        yield base
        for alias in node.names:
            yield f"{base}.{alias.name}".removeprefix(".")


def imports_within(module: str, nodes: Iterable[ast.AST], modules: Iterable[str]) -> set[str]:
    "Modules of the package that are imported anywhere below these nodes."
    statements = [
        found for node in nodes for found in ast.walk(node) if isinstance(found, (ast.Import, ast.ImportFrom))
    ]
    named = {name for statement in statements for name in targets_of(module, statement)}
    return (named & set(modules)) - {module}


def import_graph(modules: dict[str, Module], lazy: bool = True) -> Graph:
    "Who imports whom; `lazy` = imports inside functions count as well."
    graph = {}
    for name, module in modules.items():
        nodes = module.tree.body
        if not lazy:
            nodes = [
                node for node in nodes if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
            ]
        graph[name] = imports_within(name, nodes, modules)
    return graph


def folder_graph(modules: dict[str, Module], graph: Graph) -> Graph:
    "The same between folders."
    folders = {module.folder: set() for module in modules.values()}
    for importer, imported in graph.items():
        folders[modules[importer].folder] |= {modules[name].folder for name in imported} - {modules[importer].folder}
    return folders


def reachable(graph: Graph, starts: Iterable[str]) -> set[str]:
    "The starts, and everything that they lead to."
    found, waiting = set(), list(starts)
    while waiting:
        if (name := waiting.pop()) not in found:
            found.add(name)
            waiting += graph[name]
    return found


def without_shortcuts(graph: Graph) -> Graph:
    "The graph without edges that a longer way already implies; all edges of it where it has a cycle."
    try:
        TopologicalSorter(graph).prepare()
    except ValueError:
        return graph
    return {
        name: {to for to in after if not any(to in reachable(graph, [by]) for by in after - {to})}
        for name, after in graph.items()
    }


# --- commands ---------------------------------------------------------------------------------------------------------


def command_name(node: ast.AST) -> str | None:
    'The word after `fraud-poc` that runs a function, from its decorator `@....command("word")`.'
    for call in getattr(node, "decorator_list", []):
        if (
            isinstance(call, ast.Call)
            and isinstance(call.func, ast.Attribute)
            and call.func.attr == "command"
            and call.args
        ):
            return call.args[0].value
    return None


def functions_used(functions: dict[str, ast.FunctionDef]) -> Graph:
    "Function of a module -> functions of it that it names."
    return {
        name: {found.id for found in ast.walk(function) if isinstance(found, ast.Name) and found.id in functions}
        for name, function in functions.items()
    }


def command_rooms(modules: dict[str, Module]) -> Graph:
    "Command -> modules that it imports when it runs."
    found = {}
    for module in modules.values():
        functions = {node.name: node for node in module.tree.body if isinstance(node, ast.FunctionDef)}
        commands = {word: name for name, function in functions.items() if (word := command_name(function))}
        uses = functions_used(functions) if commands else {}
        for word, name in commands.items():
            run = [functions[used] for used in sorted(reachable(uses, [name]))]
            found[word] = imports_within(module.name, run, modules)
    return found


# --- figures ----------------------------------------------------------------------------------------------------------


def node_id(name: str) -> str:
    "A name as an identifier of Mermaid, in which `end` and the like are words of the language."
    return "n_" + re.sub(r"\W", "_", name)


def mermaid(lines: Iterable[str], direction: str) -> str:
    "A fenced figure."
    return "\n".join(["```mermaid", f"flowchart {direction}", *(f"  {line}" for line in lines), "```"])


def edges(graph: Graph, arrow: str = "-->") -> list[str]:
    "One line for each node that has edges."
    return [
        f"{node_id(name)} {arrow} {' & '.join(map(node_id, sorted(after)))}"
        for name, after in sorted(graph.items())
        if after
    ]


def draw_folders(modules: dict[str, Module]) -> str:
    "Folders, and which imports which."
    graph = without_shortcuts(folder_graph(modules, import_graph(modules)))
    return mermaid([f'{node_id(name)}["{name}"]' for name in graph] + edges(graph), "TD")


def draw_rooms(called: Graph, graph: Graph, modules: dict[str, Module], commands: tuple[str, ...]) -> str:
    "Commands in turn, the rooms that each calls, and the rooms that these load, by folder."
    drawn = {
        name
        for name in reachable(graph, set().union(*(called[c] for c in commands)))
        if modules[name].folder != EVERYWHERE
    }
    inner = without_shortcuts({name: graph[name] & drawn for name in sorted(drawn)})
    lines = [f'{node_id(command)}(["fraud-poc {command}"])' for command in commands]
    for folder in dict.fromkeys(modules[name].folder for name in sorted(drawn)):
        members = [name for name in sorted(drawn) if modules[name].folder == folder]
        labels = [f'  {node_id(name)}["{name.removeprefix(folder + ".")}"]' for name in members]
        lines += [f'subgraph {node_id("in_" + folder)}["{folder}"]', *labels, "end"]
    if len(commands) > 1:
        lines.append(" ==> ".join(map(node_id, commands)))
    first = {
        c: {
            name
            for name in called[c] & drawn
            if not any(name in reachable(inner, [other]) for other in called[c] & drawn - {name})
        }
        for c in commands
    }
    return mermaid(lines + edges(first, "-.->") + edges(inner), "LR")


@cache
def notebook_rows(folder: Path = ROOT / "nbs") -> list[tuple[str, str, str]]:
    "Stem, exported module and the sentence under the title of each notebook, in the order of their numbers."
    rows = []
    for path in sorted(folder.glob("[0-9]*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        text = "\n".join("".join(cell["source"]) for cell in cells)
        module = re.search(r"^#\|\s*default_exp\s+(\S+)", text, re.MULTILINE)
        sentence = re.search(r"^> (.+)$", text, re.MULTILINE)
        rows.append((path.stem, module[1] if module else "", sentence[1] if sentence else ""))
    return rows


def draw_notebooks() -> str:
    "The table of notebooks."
    lines = ["| notebook | module | what it is about |", "| :-- | :-- | :-- |"]
    for stem, module, sentence in notebook_rows():
        lines.append(
            f"| [{stem}](../nbs/{stem}.ipynb) | {f'`{module}`' if module else ''} | {sentence.replace('|', '/')} |"
        )
    return "\n".join(lines)


def drawn(text: str) -> str:
    "The page with figures and table drawn anew."
    modules = read_modules()
    called, graph = command_rooms(modules), import_graph(modules, lazy=False)
    parts = {
        "folders": draw_folders(modules),
        "batch": draw_rooms(called, graph, modules, BATCH),
        "live": draw_rooms(called, graph, modules, LIVE),
        "notebooks": draw_notebooks(),
    }
    for name, part in parts.items():
        pattern = rf"(<!-- {name}: [^\n]* -->\n).*?(<!-- end -->)"
        text, count = re.subn(
            pattern, lambda found, part=part: f"{found[1]}\n{part}\n\n{found[2]}", text, flags=re.DOTALL
        )
        if count != 1:
            raise ValueError(f"{PAGE} has {count} places marked <!-- {name}: ... -->, not one")
    return text


# --- links ------------------------------------------------------------------------------------------------------------


def notebook_labels() -> dict[str, str]:
    "Label -> stem of a notebook: its module, or its name without the number where it exports none."
    return {module or stem.partition("_")[2]: stem for stem, module, _ in notebook_rows()}


def unknown_labels(text: str) -> list[str]:
    "Labels of a page that name no notebook."
    return sorted({label for label, _ in REFERENCE.findall(text)} - notebook_labels().keys())


def relinked(text: str, page: Path) -> str:
    "The page with the numbers and paths of its notebooks as they are now."
    nbs = "nbs" if page.parent == ROOT else "../nbs"
    for label, stem in notebook_labels().items():
        text = re.sub(rf"^\[{re.escape(label)}\]: \S+$", f"[{label}]: {nbs}/{stem}.ipynb", text, flags=re.MULTILINE)
        text = re.sub(rf"\[\d\d\d_\w+\]\[{re.escape(label)}\]", f"[{stem}][{label}]", text)
    return text


def written() -> dict[Path, str]:
    "All pages as they should be."
    pages = {page: relinked(page.read_text(encoding="utf-8"), page) for page in PAGES}
    return pages | {PAGE: drawn(pages[PAGE])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; code 1 when a page differs")
    options = parser.parse_args()
    problems = []
    for page, text in written().items():
        name = page.relative_to(ROOT)
        problems += [f"{name}: no notebook exports {label}" for label in unknown_labels(text)]
        if options.check and text != page.read_text(encoding="utf-8"):
            problems.append(f"{name} differs from the code: run `python docs/architecture.py`")
        elif not options.check:
            page.write_text(text, encoding="utf-8")
    raise SystemExit("\n".join(problems) or 0)


if __name__ == "__main__":
    main()
