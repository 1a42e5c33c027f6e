"""Imports for the public pool: the mappings of records, without people, with licence and source."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import pytest

from lada_secure.data.importing.guessing import preset_mapping
from lada_secure.data.importing.pool_alike import alike_samples
from lada_secure.data.importing.pool_run import PoolRequest, pool_sentences, run_pool_import
from lada_secure.data.importing.run import ImportRefused
from lada_secure.data.records import PoolSample, pool_hash, read_pool
from lada_secure.errors import ParameterError

MAPPING = """\
format = "lada-mapping/1"
[record]
id = "id"
question = "question"
choices = ["a", "b"]
answer = { column = "right", stands_as = "letter" }
[pool]
licence = "terms"
source = { constant = "a textbook" }
"""
LONG = "A person of forty years has had a fever and a sore throat for three days and a cough"
TABLE = f"""\
id,question,a,b,right,terms
1,{LONG}?,flu,gout,A,CC BY 4.0
2,{LONG.upper()}?,gout,flu,B,
3,{LONG} ?,flu,gout,B,MIT
4,{LONG} too?,flu,gout,A,MIT
4,Another?,flu,gout,A,MIT
5,Which?,x,y,C,MIT
"""


def imported(
    tmp_path: Path, mapping: str = MAPPING, table: str = TABLE, most: float = 0.5
) -> dict[str, Any]:
    (tmp_path / "q.csv").write_text(table, encoding="utf-8")
    (tmp_path / "pool.toml").write_text(mapping, encoding="utf-8")
    request = PoolRequest(
        source=str(tmp_path / "q.csv"),
        mapping=tmp_path / "pool.toml",
        out=tmp_path / "out",
        most_rejects=most,
    )
    return run_pool_import(request, progress=lambda *_: None)


def test_samples_carry_licence_and_source_and_are_hashed_with_them(tmp_path: Path) -> None:
    told = imported(tmp_path)
    pool = read_pool(tmp_path / "out" / "pool.jsonl")
    assert [(one.sample_id, one.licence) for one in pool] == [
        ("1", "CC BY 4.0"),
        ("2", None),
        ("3", "MIT"),
        ("4", "MIT"),
    ]
    assert {one.source for one in pool} == {"a textbook"}
    assert told["pool_sha256"] == pool_hash(pool)
    assert told["rejected_by_reason"] == {"answer-no-place": 1, "row-repeated": 1}
    rejects = (tmp_path / "out" / "pool-rejects.csv").read_text(encoding="utf-8").splitlines()
    assert rejects == ["line,reason,column", "6,row-repeated,", "7,answer-no-place,right"]
    assert not (tmp_path / "pool.salt").exists()


def test_what_says_the_same_and_what_contradicts_is_named_by_its_ids(tmp_path: Path) -> None:
    told = imported(tmp_path)
    # 1 and 2 are one question with one answer, with choices in another order and in capitals; a
    # space before the question mark makes 3 another text, which is near, and answered otherwise.
    assert told["duplicates"] == [["1", "2"]]
    assert told["conflicts"] == []
    assert told["near"] == [["3", "1", False], ["4", "3", False]]
    with (tmp_path / "out" / "pool-alike.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["kind"], row["sample_id"], row["other"]) for row in rows] == [
        ("duplicate", "1", "2"),
        ("near", "1", "3"),
        ("near", "3", "4"),
    ]
    assert "3 of 1, with another answer" in "\n".join(pool_sentences(told))


def test_an_agreement_is_a_duplicate_also_where_a_third_sample_contradicts(tmp_path: Path) -> None:
    table = """\
id,question,a,b,right,terms
1,Is it?,hot,cold,A,
2,Is it?,cold,hot,B,
3,Is it?,hot,cold,B,
4,Is it?,hot,cold,B,
"""
    told = imported(tmp_path, table=table)
    assert told["duplicates"] == [["1", "2"], ["3", "4"]]
    assert told["conflicts"] == [{"1": "hot", "2": "hot", "3": "cold", "4": "cold"}]
    rows = (tmp_path / "out" / "pool-alike.csv").read_text(encoding="utf-8").splitlines()[1:]
    assert rows == [
        "duplicate,1,2,hot,hot",
        "duplicate,3,4,cold,cold",
        "conflict,1,3,hot,cold",
        "conflict,2,3,hot,cold",
        "conflict,1,4,hot,cold",
    ]


def test_a_mapping_about_people_makes_no_pool(tmp_path: Path) -> None:
    mapping = MAPPING.replace("[record]", '[record]\nunit = "id"')
    with pytest.raises(ParameterError, match="about somebody, and a pool is public"):
        imported(tmp_path, mapping)
    assert not (tmp_path / "out").exists()


def test_what_was_not_looked_for_is_not_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(ImportRefused) as refused:
        imported(tmp_path, most=0.0)
    lines = list(pool_sentences(refused.value.told))
    assert lines[-1] == "duplicates, contradictions and near duplicates were not looked for"
    assert not [line for line in lines if line.startswith("0 ")]
    (tmp_path / "out").rename(tmp_path / "before")
    asked = PoolRequest(
        source=str(tmp_path / "q.csv"),
        mapping=tmp_path / "pool.toml",
        out=tmp_path / "out",
        most_rejects=0.5,
        near=False,
    )
    lines = list(pool_sentences(run_pool_import(asked, progress=lambda *_: None)))
    assert "near duplicates were not looked for" in lines
    assert "0 near duplicate(s)" not in lines


def test_gold_answers_that_differ_are_a_conflict() -> None:
    def sample(name: str, question: str, answer: str) -> PoolSample:
        return PoolSample(sample_id=name, question=question, choices=("yes", "no"), answer=answer)

    found = alike_samples(
        [sample("a", "Is it?", "yes"), sample("b", "is  IT?", "no"), sample("c", "Was it?", "no")]
    )
    assert found.conflicts == ({"a": "yes", "b": "no"},)
    assert found.duplicates == ()


def test_a_mapping_of_records_makes_a_pool_of_all_rows(tmp_path: Path) -> None:
    table = "sentence,label\nGood year.,positive\nBad year.,negative\nBad year.,negative\n"
    mapping = re.sub("(?m)^unit = .*$", "", preset_mapping("financial-phrasebank"))
    told = imported(tmp_path, mapping, table)
    # No unit is read, nobody is held out; what repeats word for word has the same id.
    assert (told["samples"], told["rejected_by_reason"]) == (2, {"row-repeated": 1})
    first = read_pool(tmp_path / "out" / "pool.jsonl")
    imported(tmp_path, mapping, table)
    assert read_pool(tmp_path / "out" / "pool.jsonl") == first


def test_too_many_rejects_leave_the_pool_as_it_was(tmp_path: Path) -> None:
    imported(tmp_path)
    before = (tmp_path / "out" / "pool.jsonl").read_bytes()
    with pytest.raises(ImportRefused, match=r"no pool .*pool\.jsonl is of an earlier one"):
        imported(tmp_path, most=0.01)
    assert (tmp_path / "out" / "pool.jsonl").read_bytes() == before
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "pool-alike.csv",
        "pool-rejects.csv",
        "pool.jsonl",
    ]


def test_an_import_does_not_write_over_its_source(tmp_path: Path) -> None:
    source = tmp_path / "pool.jsonl"
    source.write_text('{"id": "1", "question": "Q?", "a": "x", "b": "y", "right": "A"}\n')
    (tmp_path / "m.toml").write_text(MAPPING, encoding="utf-8")
    request = PoolRequest(source=str(source), mapping=tmp_path / "m.toml", out=tmp_path)
    with pytest.raises(ParameterError, match=r"the source is its pool\.jsonl"):
        run_pool_import(request, progress=lambda *_: None)


def test_what_a_terminal_obeys_is_refused_in_every_text_of_a_sample(tmp_path: Path) -> None:
    told = imported(tmp_path, table=TABLE.replace("CC BY 4.0", "CC\x1b[2J BY"), most=0.9)
    assert told["rejected_by_reason"]["control-character"] == 1
    assert "\x1b" not in (tmp_path / "out" / "pool.jsonl").read_text(encoding="utf-8")


def test_a_pool_that_is_not_written_has_no_hash_and_nothing_to_compare(tmp_path: Path) -> None:
    with pytest.raises(ImportRefused) as refused:
        imported(tmp_path, most=0.0)
    assert refused.value.told["pool_sha256"] is None
    assert refused.value.told["duplicates"] is None
    assert not (tmp_path / "out" / "pool.jsonl").exists()
