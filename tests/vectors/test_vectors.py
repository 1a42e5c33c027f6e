"""The committed vectors are the implementation's, and an independent checker accepts them."""

from __future__ import annotations

import ast
import base64
import copy
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from check import CHECKS, check_file, main
from check_rings import blake2b
from check_text import WrongVectorError
from generate import FILES, RANDOMISED, render

from lada_secure.privacy.ledger.entries import parse_ledger_lines
from lada_secure.privacy.ledger.replay import LedgerReplay
from lada_secure.privacy.ledger.verification import ledger_identity

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


def test_the_ledgers_of_the_vectors_follow_all_rules() -> None:
    vectors = json.loads((FOLDER / "ledger.json").read_bytes())
    for name in ("ledger", "restarted"):
        lines = "".join(f"{line}\n" for line in vectors[name]["lines"])
        entries = parse_ledger_lines(lines.encode("ascii"))
        replay = LedgerReplay(ledger_identity(entries))
        for entry in entries:
            replay.append(entry)
        assert replay.head_hash == vectors[name]["entry_hashes"][-1]


def test_the_checker_uses_nothing_of_this_project() -> None:
    modules = sorted(Path(__file__).parent.glob("check*.py"))
    own = {path.stem for path in modules}
    used: set[str] = set()
    for path in modules:
        tree = ast.parse(path.read_text("utf-8"))
        used |= {
            (one.module if isinstance(one, ast.ImportFrom) else one.names[0].name) or ""
            for one in ast.walk(tree)
            if isinstance(one, ast.Import | ast.ImportFrom)
        }
    tops = {name.split(".")[0] for name in used}
    assert tops - sys.stdlib_module_names - own == {"cryptography"}


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
    elif isinstance(old, float):
        part[path[-1]] = old + 2.0**-10
    else:
        part[path[-1]] = old ^ 1
    return changed


@pytest.mark.parametrize(
    "name", sorted(set(CHECKS) - {"sealed.json", "scores.json", "canonical_json.json"})
)
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


@pytest.mark.parametrize(
    "path",
    [
        ("digest",),
        ("secret_key",),
        ("query",),
        ("scores",),
        ("committed",),
        ("cells",),
        ("row_bound",),
        ("utilities", 1),
        ("matrix", 0, 1),
        ("decrypted", 2),
    ],
    ids=str,
)
def test_a_change_in_encrypted_scores_is_refused(path: tuple[Any, ...]) -> None:
    vectors = json.loads((FOLDER / "scores.json").read_bytes())
    with pytest.raises(WrongVectorError):
        check_file("scores.json", json.dumps(_changed(vectors, path)).encode("ascii"))


@pytest.mark.parametrize("length", [0, 1, 127, 128, 129, 300])
@pytest.mark.parametrize("key", [b"", b"k" * 64])
def test_the_checkers_own_blake2b_is_the_standard_one(key: bytes, length: int) -> None:
    parameters = bytes((64, len(key), 1, 1)) + bytes(60)
    message = bytes(range(256))[:length] * (1 if length <= 256 else 2)
    expected = hashlib.blake2b(message, key=key).digest()
    assert blake2b(parameters, key, message) == expected


def test_the_last_seed_of_a_query_is_bound_to_what_it_decrypts_to() -> None:
    vectors = json.loads((FOLDER / "scores.json").read_bytes())
    raw = bytearray(base64.b64decode(vectors["query"]))
    raw[-1] ^= 1
    vectors["query"] = base64.b64encode(bytes(raw)).decode("ascii")
    with pytest.raises(WrongVectorError, match="cell 1"):
        check_file("scores.json", json.dumps(vectors).encode("ascii"))


def test_spellings_are_judged_as_the_implementation_judges_them() -> None:
    from lada_secure.canonical import parse_canonical_json
    from lada_secure.errors import PeerError

    vectors = json.loads((FOLDER / "canonical_json.json").read_bytes())
    for text in vectors["accepted"]:
        parse_canonical_json(text.encode("ascii"), max_bytes=1000)
    for text in vectors["refused"]:
        with pytest.raises(PeerError):
            parse_canonical_json(text.encode("utf-8"), max_bytes=1000)
