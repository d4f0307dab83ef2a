"""The shape of the code: sizes, names and constructs that keep it readable. Each test lists all that break its rule."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
LONGEST_FILE = 300
LONGEST_FUNCTION = 60
Function = ast.FunctionDef | ast.AsyncFunctionDef

SOURCES = sorted(path for package in ("flowrl", "rewards") for path in (ROOT / package).glob("**/*.py"))
TREES = {str(path.relative_to(ROOT)): ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}
NOT_OURS = {".venv", ".git", "runs", "build", "dist", ".pocket-build", "checkpoints", ".pytest_cache", "shared"}
PAGES = [path for path in sorted(ROOT.glob("**/*.md")) if not NOT_OURS & set(path.relative_to(ROOT).parts)]


def nodes() -> Iterator[tuple[str, ast.AST]]:
    """Every node of every source file, with its file and line."""
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            yield f"{name}:{node.lineno if isinstance(node, ast.stmt | ast.expr) else 1}", node


def num_lines(node: Function) -> int:
    """How long a function is, from its def to its last line."""
    return (node.end_lineno or node.lineno) - node.lineno + 1


def test_there_is_something_to_check() -> None:
    assert {"flowrl/types.py", "flowrl/trainer.py", "rewards/__init__.py"} <= TREES.keys()


def test_files_can_be_read_in_one_sitting() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    assert {name: length for name, length in lengths.items() if length > LONGEST_FILE} == {}


def test_functions_fit_a_screen() -> None:
    functions = [(place, node) for place, node in nodes() if isinstance(node, Function)]
    assert [
        f"{place} {one.name}: {num_lines(one)}" for place, one in functions if num_lines(one) > LONGEST_FUNCTION
    ] == []


def test_the_training_step_is_one_function_of_the_trainer() -> None:
    steps = [place for place, node in nodes() if isinstance(node, Function) and node.name == "train_step"]
    assert [place.partition(":")[0] for place in steps] == ["flowrl/trainer.py"]


def test_names_say_what_is_inside() -> None:
    vague = {"util", "utils", "helper", "helpers", "common", "misc", "toy", "temp", "tmp"}
    roles = {
        "worker",
        "workers",
        "manager",
        "engine",
        "processor",
        "service",
    }  # ours: rollout, scorer, learner, trainer
    assert [name for name in TREES if set(re.split(r"[/_.]", name)) & (vague | roles)] == []


def test_everything_public_says_what_it_is() -> None:
    silent = [name for name, tree in TREES.items() if tree.body and ast.get_docstring(tree) is None]
    for name, tree in TREES.items():
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
        for scope in [tree, *classes]:
            silent += [
                f"{name}:{node.lineno} {node.name}"
                for node in scope.body
                if isinstance(node, Function | ast.ClassDef)
                and not node.name.startswith("_")
                and node.name != "forward"  # the class says it
                and ast.get_docstring(node) is None
            ]
    assert silent == []


def test_no_construct_that_hides_a_mistake() -> None:
    found = []
    for place, node in nodes():
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
            found += [f"{place} getattr with a default hides a misspelt name"] if len(node.args) > 2 else []
        elif isinstance(node, Function | ast.Lambda) and node.args.kwarg:
            found.append(f"{place} **{node.args.kwarg.arg} accepts a misspelt argument")
        elif isinstance(node, ast.ImportFrom) and node.level:
            found.append(f"{place} relative import")
    assert found == []


def test_source_is_ascii() -> None:
    lines = [(path, *line) for path in SOURCES for line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)]
    assert [f"{path.relative_to(ROOT)}:{number} {line}" for path, number, line in lines if not line.isascii()] == []


def test_no_test_module_is_skipped_whole() -> None:
    found = []
    for path in sorted((ROOT / "tests").glob("**/*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            text = ast.unparse(node)
            if isinstance(node, ast.Expr | ast.Assign) and re.search(r"pytest\.(mark\.)?(skip|importorskip)", text):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno} {text}")
    assert found == []


def test_there_is_a_readme() -> None:
    assert (ROOT / "README.md").is_file()


def test_links_lead_somewhere() -> None:
    dead = []
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"(?:src|href)=\"([^\"]+)\"", text):
            file, _, anchor = target.partition("#")
            there = (page.parent / file) if file else page
            if re.match(r"[a-z]+:", target):
                continue  # another site
            if not there.exists() or (anchor and there.suffix == ".md" and anchor not in anchors(there)):
                dead.append(f"{page.relative_to(ROOT)}: {target}")
    assert dead == []


def anchors(page: Path) -> set[str]:
    """The anchors that a Markdown page's headings make."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
