"""A person's records are all on one side, in every import, however they are spelled and ordered."""

from __future__ import annotations

import csv
import itertools
import json
import os
import random
import unicodedata
from pathlib import Path

import pytest

from lada_secure.data.importing.run import ImportRequest, run_import
from lada_secure.data.importing.splits import is_held_out, read_salt, salt_path, unit_digest
from lada_secure.data.unit_ids import canonical_unit
from lada_secure.errors import ParameterError

IMPORTS = 1000
PEOPLE = 40
MAPPING = """\
format = "lada-mapping/1"
[record]
unit = { column = "unit", spellings = "SPELLINGS" }
question = "question"
answer = "answer"
[split]
held_out = SHARE
"""


def spelled(person: int, chance: random.Random) -> str:
    name = f"M\u00fcller-{person}"
    return chance.choice(
        [
            name,
            unicodedata.normalize("NFD", name),
            name.upper(),
            f" {name} ",
            name.replace("-", "\u2011"),
            name + "\u200b",
        ]
    )


def sides(folder: Path) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for name in ("records.jsonl", "held-out.jsonl"):
        path = folder / name
        for line in path.read_text("utf-8").splitlines() if path.exists() else ():
            found.setdefault(canonical_unit(json.loads(line)["unit"]), set()).add(name)
    return found


def test_in_a_thousand_random_imports_nobody_is_on_two_sides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing here is about power cuts, and a thousand imports wait for the disk otherwise.
    monkeypatch.setattr(os, "fsync", lambda _: None)
    seed = 20_261_130
    chance = random.Random(seed)
    first: dict[tuple[str, float], str] = {}
    for number in range(IMPORTS):
        share = chance.choice([0.1, 0.2, 0.3])
        spellings = chance.choice(["one_person", "different_people"])
        mapping = tmp_path / "mapping.toml"
        mapping.write_text(
            MAPPING.replace("SPELLINGS", spellings).replace("SHARE", str(share)), encoding="utf-8"
        )
        with (tmp_path / "cases.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["unit", "question", "answer"])
            for row in range(chance.randrange(12, 20)):
                person = spelled(chance.randrange(PEOPLE), chance)
                writer.writerow([person, f"Question {number}/{row}?", "1"])
        run_import(
            ImportRequest(
                source=str(tmp_path / "cases.csv"),
                mapping=mapping,
                out=tmp_path / str(number),
                near=False,
            ),
            progress=lambda *_: None,
        )
        for unit, places in sides(tmp_path / str(number)).items():
            assert len(places) == 1, f"seed {seed}, import {number}"
            (place,) = places
            assert first.setdefault((unit, share), place) == place, f"seed {seed}, import {number}"
    held = {unit for (unit, _), place in first.items() if place == "held-out.jsonl"}
    assert 0 < len(held) < PEOPLE


def test_a_larger_share_keeps_who_was_held_out_and_is_about_as_large_as_asked() -> None:
    salt = bytes(range(32))
    units = [unit_digest(f"p{one}", salt=salt) for one in range(20_000)]
    shares = [0.0, 0.1, 0.2, 0.5, 0.9]
    held = [{one for one in units if is_held_out(one, share=share)} for share in shares]
    assert held[0] == set()
    for less, more in itertools.pairwise(held):
        assert less < more
    # Five standard deviations of a share over 20,000 units are below 0.018.
    for share, found in zip(shares, held, strict=True):
        assert abs(len(found) / len(units) - share) < 0.018


def test_another_salt_holds_out_others() -> None:
    kept = [
        {one for one in range(1000) if is_held_out(unit_digest(f"p{one}", salt=salt), share=0.5)}
        for salt in (bytes(32), bytes([1]) * 32)
    ]
    assert 300 < len(kept[0] ^ kept[1]) < 700


def test_the_salt_is_made_once_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    path = salt_path(tmp_path / "mapping.toml")
    salt = read_salt(path)
    assert len(salt) == 32
    assert read_salt(path) == salt
    assert path.stat().st_mode & 0o777 == 0o600
    assert [one.name for one in tmp_path.iterdir()] == ["mapping.salt"]
    path.chmod(0o644)
    with pytest.raises(ParameterError, match="chmod 600"):
        read_salt(path)
    path.chmod(0o600)
    path.write_text("short")
    with pytest.raises(ParameterError, match="64 hexadecimal digits"):
        read_salt(path)
