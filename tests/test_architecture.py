"""The shape of the code, read from its syntax trees: which way imports point, how long files are, what methods may not do."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "draftwise"
FILES = sorted(SRC.rglob("*.py"))

# The core from the bottom up: a module imports modules of lower layers only.
LAYERS = (
    {"types", "noise", "clock", "wide", "files", "compiled", "timings"},
    {"hostrow"},
    {"nucleus"},
    {"probs", "protocols", "trees", "stats", "vocabularies"},
    {"rounds", "evidence"},
    {"sequence"},
    {"engine"},
)
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
OUTSIDE = {"cli", "commands", "server", "bench"}  # the ways in: nothing imports them but each other
LEAVES = {"methods", "backends"}
FOR_LEAVES = set[str]().union(*LAYERS[:5])  # data, numerics and (a cascade) rounds
MAX_LINES = 300
PLAIN_BASES = {"NamedTuple", "Protocol", "Enum"}


def module(path: Path) -> str:
    """The dotted name of a file below the package: "methods.adasd"; "" for the package itself."""
    parts = path.relative_to(SRC).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def runtime(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below, without what stands under ``if TYPE_CHECKING``."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            continue
        yield child
        yield from runtime(child)


def imports(tree: ast.AST) -> set[str]:
    """The modules of the package that a file imports when it runs, dotted and without "draftwise."; relative imports are not used here."""
    found = set()
    for node in runtime(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    inside = {name.partition(".")[2] for name in found if name.split(".")[0] == "draftwise"}
    return {known(name) for name in inside}


def known(name: str) -> str:
    """The longest prefix that is a file: "types.Draft" -> "types"."""
    names = {module(path) for path in FILES}
    while name and name not in names:
        name = name.rpartition(".")[0]
    return name


def wrong_way(name: str, wanted: set[str]) -> set[str]:
    """The imports that module `name` may not have."""
    top = name.split(".")[0]
    tops = {other: other.split(".")[0] for other in wanted}
    if top in RANK:
        return {other for other, t in tops.items() if RANK.get(t, len(LAYERS)) >= RANK[top]}
    if top in LEAVES:
        return {other for other, t in tops.items() if t not in FOR_LEAVES | {top}}
    return {other for other, t in tops.items() if t in OUTSIDE and top not in OUTSIDE}


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """One circle of imports, or []."""
    done: set[str] = set()

    def visit(name: str, trail: list[str]) -> list[str]:
        if name in trail:
            return [*trail[trail.index(name) :], name]
        if name in done:
            return []
        found = next((c for other in sorted(graph.get(name, ())) if (c := visit(other, [*trail, name]))), [])
        done.add(name)
        return found

    return next((c for name in sorted(graph) if (c := visit(name, []))), [])


def heirs(tree: ast.AST) -> list[str]:
    """Classes that inherit from something that is not plain data, a seam or an exception."""
    return [node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and not all(_plain(base) for base in node.bases)]


def _plain(base: ast.expr) -> bool:
    name = ast.unparse(base).split("[")[0].split(".")[-1]
    return name in PLAIN_BASES or name.endswith(("Error", "Exception", "Warning"))


def prints(tree: ast.AST) -> list[int]:
    """The lines on which the built-in print is called."""
    return [n.lineno for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name) and n.func.id == "print"]


@pytest.fixture(scope="module")
def trees() -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


def test_imports_point_one_way(trees):
    wrong = {module(path): found for path, tree in trees.items() if (found := wrong_way(module(path), imports(tree)))}
    assert wrong == {}


def test_no_circles(trees):
    assert cycle({module(path): imports(tree) - {module(path)} for path, tree in trees.items()}) == []


def test_no_inheritance_among_methods(trees):
    found = {module(path): names for path, tree in trees.items() if module(path).startswith("methods") and (names := heirs(tree))}
    assert found == {}


def test_no_print(trees):
    assert {module(path): lines for path, tree in trees.items() if (lines := prints(tree))} == {}


def test_files_are_short():
    long = {module(path): n for path in FILES if (n := len(path.read_text(encoding="utf-8").splitlines())) > MAX_LINES}
    assert long == {}


def test_the_layers_name_real_modules():
    assert set(RANK) <= {module(path) for path in FILES}


def test_the_checks_can_fail():
    assert wrong_way("rounds", {"probs", "engine"}) == {"engine"}
    assert wrong_way("engine", {"rounds", "methods.adasd", "api"}) == {"methods.adasd", "api"}
    assert wrong_way("methods.adasd", {"types", "rounds", "methods.fixed", "engine", "catalog"}) == {"engine", "catalog"}
    assert wrong_way("api", {"engine", "cli"}) == {"cli"}
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert heirs(ast.parse("class A(NamedTuple): ...\nclass B(A): ...\nclass C(ValueError): ...")) == ["B"]
    assert prints(ast.parse("print(1)\nconsole.print(2)")) == [1]
    code = "from draftwise import noise, probs\nfrom draftwise.types import Draft\nif TYPE_CHECKING:\n    import draftwise.engine"
    assert imports(ast.parse(code)) == {"noise", "probs", "types"}
