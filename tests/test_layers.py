"""Imports between the folders of the package go one way."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "fl_hydra"

Graph = dict[str, dict[str, str]]
"""By part of the package what it imports, and where it does so first."""


def part_of(names: list[str]) -> str:
    """The part that a module belongs to: a folder, or a module beside the folders. What `python -m` starts is a part of its own."""
    return ".".join(names[:2]) if names[1:2] == ["__main__"] else names[0] if names else "fl_hydra"


def imported(tree: ast.AST) -> Iterator[tuple[int, list[str]]]:
    """Each module of the package that is imported, wherever: in functions and for types, too. With the line, without the package's name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module is not None, "imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            first, *rest = name.split(".")
            if first == "fl_hydra":
                yield node.lineno, rest


def graph_of(package: Path) -> Graph:
    """Who imports whom."""
    graph: Graph = {}
    for path in sorted(package.rglob("*.py")):
        names = [name for name in path.relative_to(package).with_suffix("").parts if name != "__init__"]
        mine = graph.setdefault(part_of(names), {})
        for line, other in imported(ast.parse(path.read_text())):
            if part_of(other) != part_of(names):
                mine.setdefault(part_of(other), f"{path.relative_to(package.parent)}:{line}")
    return graph


def cycle(graph: Graph) -> list[str]:
    """A cycle, with the line of each import in it; nothing where there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        parts = error.args[1][::-1]  # whose order is that in which parts are imported
        return [f"{part} imports {other} in {graph[part][other]}" for part, other in pairwise(parts)]
    return []


def test_folders_import_each_other_in_no_circle() -> None:
    graph = graph_of(PACKAGE)
    assert {"runs", "report", "tracking", "training", "config", "runs.__main__"} <= graph.keys()
    assert cycle(graph) == []


def test_a_circle_is_found_wherever_the_import_stands(tmp_path: Path) -> None:
    for name, text in (
        ("a", "from fl_hydra.b.module import thing"),
        ("b", "def f():\n    import fl_hydra.c"),
        ("c", "import fl_hydra.a.x"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "module.py").write_text(text)
    found = cycle(graph_of(tmp_path))
    assert sorted(line.partition(" in ")[0] for line in found) == ["a imports b", "b imports c", "c imports a"]
    (tmp_path / "c" / "module.py").unlink()
    assert cycle(graph_of(tmp_path)) == []
