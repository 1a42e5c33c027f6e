"""The committed vectors are the implementation's, and an independent checker accepts them."""

from __future__ import annotations

import ast
import copy
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from check import CHECKS, WrongVectorError, check_file, main
from generate import FILES, RANDOMISED, render

FOLDER = Path(__file__).parents[2] / "protocol" / "vectors"
# Labels for people; everything else in a file is checked.
LABELS = {"why"}


def test_every_vector_file_has_a_generator_and_a_check() -> None:
    assert set(FILES) == set(CHECKS) == {path.name for path in FOLDER.iterdir()}


@pytest.mark.parametrize("name", sorted(set(FILES) - RANDOMISED))
def test_the_committed_file_is_what_the_generator_makes(name: str) -> None:
    assert (FOLDER / name).read_bytes() == render(FILES[name]())


def test_the_checker_accepts_all_committed_files() -> None:
    assert main(FOLDER) == 0


@pytest.mark.parametrize("name", sorted(RANDOMISED))
def test_the_checker_accepts_a_fresh_generation(name: str) -> None:
    fresh = render(FILES[name]())
    assert fresh != (FOLDER / name).read_bytes()
    check_file(name, fresh)


def test_the_checker_uses_nothing_of_this_project() -> None:
    tree = ast.parse((Path(__file__).parent / "check.py").read_text("utf-8"))
    used = {
        (one.module if isinstance(one, ast.ImportFrom) else one.names[0].name) or ""
        for one in ast.walk(tree)
        if isinstance(one, ast.Import | ast.ImportFrom)
    }
    tops = {name.split(".")[0] for name in used}
    assert tops - sys.stdlib_module_names == {"cryptography"}


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict):
        for key, one in value.items():
            if key not in LABELS:
                yield from _leaves(one, (*path, key))
    elif isinstance(value, list):
        for number, one in enumerate(value):
            yield from _leaves(one, (*path, number))
    else:
        yield path


def _changed(vectors: Any, path: tuple[Any, ...]) -> Any:
    """The vectors with one byte of one value flipped."""
    changed = copy.deepcopy(vectors)
    part = changed
    for step in path[:-1]:
        part = part[step]
    old = part[path[-1]]
    if isinstance(old, str):
        middle = len(old) // 2
        part[path[-1]] = (
            old[:middle] + chr(ord(old[middle : middle + 1] or "x") ^ 1) + old[middle + 1 :]
        )
    else:
        part[path[-1]] = old ^ 1
    return changed


@pytest.mark.parametrize("name", sorted(set(CHECKS) - {"sealed.json", "canonical_json.json"}))
def test_a_flipped_byte_in_any_value_is_refused(name: str) -> None:
    vectors = json.loads((FOLDER / name).read_bytes())
    paths = list(_leaves(vectors))
    if name == "envelope.json":
        # A refused message with a flipped byte is still a message to be refused.
        paths = [path for path in paths if path[0] != "refused"]
    if name == "transcript.json":
        # Nothing binds a message that stands outside of transcripts.
        left_out = ('"kind":"receipt"', '"kind":"refusal"')
        outside = [any(one in text for one in left_out) for text in vectors["messages"]]
        paths = [path for path in paths if path[0] != "messages" or not outside[path[1]]]
    for path in paths[:: max(1, len(paths) // 40)]:
        with pytest.raises(WrongVectorError):
            check_file(name, json.dumps(_changed(vectors, path)).encode("ascii"))


@pytest.mark.parametrize(
    "path",
    [
        ("public_key",),
        ("secret_key",),
        ("contributions", "site-b"),
        ("private_mask_keys", "site-a"),
        ("context",),
        ("sum_sha256",),
        ("opened", 3),
        ("vectors", "site-c", 9),
        ("parameters", "digest"),
    ],
    ids=str,
)
def test_a_flipped_byte_in_a_sealed_sum_is_refused(path: tuple[Any, ...]) -> None:
    vectors = json.loads((FOLDER / "sealed.json").read_bytes())
    with pytest.raises(WrongVectorError):
        check_file("sealed.json", json.dumps(_changed(vectors, path)).encode("ascii"))


def test_spellings_are_judged_as_the_implementation_judges_them() -> None:
    from lada_secure.canonical import parse_canonical_json
    from lada_secure.errors import PeerError

    vectors = json.loads((FOLDER / "canonical_json.json").read_bytes())
    for text in vectors["accepted"]:
        parse_canonical_json(text.encode("ascii"), max_bytes=1000)
    for text in vectors["refused"]:
        with pytest.raises(PeerError):
            parse_canonical_json(text.encode("utf-8"), max_bytes=1000)
