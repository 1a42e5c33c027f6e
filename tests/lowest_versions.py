"""The constraints of `make test-lowest`: every lower bound of a pyproject.toml as an exact version.

    python tests/lowest_versions.py pyproject.toml lab/pyproject.toml > constraints

A requirement with a lower bound becomes `name==bound`. Packages that nobody here asks for by name
keep their exact version of constraints.txt, so that a run of today is the run of tomorrow; all but
those that a package above them pins to a version of its own.
"""

import itertools
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

EXACT: Final = Path(__file__).parents[1] / "constraints.txt"

# pydantic and psycopg each pin one version.
PINNED_BY_OTHERS: Final = frozenset({"pydantic-core", "psycopg-binary"})


def requirements(projects: Iterable[Path]) -> dict[str, Requirement]:
    """Everything that the projects ask for to run and to be tested, but for each other.

    Raises: ValueError: one package is asked for twice with different bounds.
    """
    tables = [tomllib.loads(path.read_text())["project"] for path in projects]
    own = {canonicalize_name(table["name"]) for table in tables}
    found: dict[str, Requirement] = {}
    for table in tables:
        extras = table.get("optional-dependencies", {})
        wanted = [lines for name, lines in extras.items() if name != "lint"]
        for line in itertools.chain(table["dependencies"], *wanted):
            requirement = Requirement(line)
            name = canonicalize_name(requirement.name)
            if name in own:
                continue
            if name in found and found[name].specifier != requirement.specifier:
                raise ValueError(f"{name}: asked for as {found[name]} and as {requirement}")
            found[name] = requirement
    return found


def lower_bound(requirement: Requirement) -> str:
    """The version after `>=`.

    Raises: ValueError: there is none, or more than one.
    """
    bounds = [part.version for part in requirement.specifier if part.operator == ">="]
    if len(bounds) != 1:
        raise ValueError(f"{requirement}: expected one lower bound, `>=`")
    return bounds[0]


def exact_versions() -> dict[str, str]:
    """Name and version of every line of constraints.txt."""
    lines = (line for line in EXACT.read_text().splitlines() if not line.startswith("#"))
    pairs = (line.split("==") for line in lines)
    return {canonicalize_name(name): version for name, version in pairs}


def main() -> None:
    """Print the constraints of the projects that the command line names."""
    lowest = {
        name: lower_bound(requirement)
        for name, requirement in requirements(map(Path, sys.argv[1:])).items()
    }
    others = {
        name: version
        for name, version in exact_versions().items()
        if name not in lowest and name not in PINNED_BY_OTHERS
    }
    for name, version in sorted((lowest | others).items()):
        print(f"{name}=={version}")


if __name__ == "__main__":
    main()
