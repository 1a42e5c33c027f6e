"""No module and no room imports in a circle, not even late or for types alone."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "lada_secure": ROOT / "lada_secure",
    "lada_protocol": ROOT / "protocol" / "lada_protocol",
    "lada_clients": ROOT / "clients" / "lada_clients",
    "lada_server": ROOT / "server" / "lada_server",
    "lada_lab": ROOT / "lab" / "lada_lab",
}
Graph = dict[str, set[str]]


def modules() -> dict[str, Path]:
    """Every module by its dotted name; a package stands for its `__init__`."""
    found = {}
    for package, folder in PACKAGES.items():
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join((package, *parts)).removesuffix(".__init__")] = path
    return found


def imported(path: Path, known: Iterable[str]) -> set[str]:
    """Modules of ours that a file imports anywhere: at its top, late, or for types."""
    known = set(known)
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                names.add(inner if inner in known else node.module)
    return names & known


def import_graph() -> Graph:
    paths = modules()
    return {name: imported(path, paths) - {name} for name, path in paths.items()}


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Strongly connected components of more than one node (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in sorted(graph.get(node, ())):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            at = stack.index(node)
            if len(stack) > at + 1:
                found.append(sorted(stack[at:]))
            del stack[at:]

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return found


def rooms(graph: Graph, house: str) -> Graph:
    """The graph of a package's rooms; a module that lies outside all rooms is its own."""
    prefix = house + "."
    between: Graph = defaultdict(set)
    for name, targets in graph.items():
        for target in targets:
            if name.startswith(prefix) and target.startswith(prefix):
                here, there = (one.removeprefix(prefix).split(".")[0] for one in (name, target))
                if here != there:
                    between[here].add(there)
    return dict(between)


def test_no_module_takes_part_in_a_circle() -> None:
    assert circles(import_graph()) == []


def test_no_room_takes_part_in_a_circle() -> None:
    graph = import_graph()
    houses = {name.rpartition(".")[0] for name in graph if "." in name}
    assert {house: found for house in houses if (found := circles(rooms(graph, house)))} == {}


def test_a_circle_is_found_at_any_length() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set()}) == [["a", "b", "c"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
