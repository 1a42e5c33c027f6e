"""The file gate's pure half: every fault of a file at once, by line, and never by content."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lada_secure.data.record_faults import refuse
from lada_secure.data.records import inspect_records, parse_pool
from lada_secure.errors import ParameterError

ROW: dict[str, Any] = {
    "record_id": "MRN-0000",
    "unit": "Mustermann, Erika",
    "question": "SENTINEL-question",
    "choices": [],
    "answer": "SENTINEL-answer",
    "rationale": None,
}
GOOD = json.dumps(ROW).encode()


def row(**changes: object) -> bytes:
    return json.dumps({**ROW, "record_id": "r2", **changes}).encode()


def faults(tmp_path: Path, *lines: bytes) -> list[tuple[int | None, str]]:
    path = tmp_path / "records.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    return [(one.line, one.what) for one in inspect_records(path).faults]


@pytest.mark.parametrize(
    ("line", "what"),
    [
        pytest.param(b"{", "is not JSON (column 2)", id="not JSON"),
        pytest.param(b"\xff\xfe{}", "is not UTF-8 (byte 1 of the line)", id="not UTF-8"),
        pytest.param(b"[" * 60_000, "is not JSON that can be read", id="too deep"),
        pytest.param(b'{"a": ' + b"9" * 5000 + b"}", "is not JSON that can be read", id="digits"),
        pytest.param(b"7", "is a number, expected an object", id="a number"),
        pytest.param(b" " * 70_000, "has 70000 bytes, at most 65536", id="too long a line"),
        pytest.param(b"", "is not JSON (column 1)", id="an empty line"),
        pytest.param(row(choices=["a", 7]), "choices holds something else than texts", id="7"),
        pytest.param(row(choices=None), "choices is null, expected a list", id="no list"),
        pytest.param(row(question=" \t"), "question is empty", id="a blank question"),
        pytest.param(row(answer=""), "answer is empty", id="an empty answer"),
        pytest.param(
            row(answer="4\n5"),
            "the answer of an open question must stand in one line",
            id="two lines",
        ),
        pytest.param(
            row(answer="4\u20285"),
            "the answer of an open question must stand in one line",
            id="a line separator",
        ),
        pytest.param(
            row(answer="a", choices=["a"]),
            "choices: expected 2 to 26, or none at all, got 1",
            id="one choice",
        ),
        pytest.param(
            row(answer="a0", choices=[f"a{n}" for n in range(30)]),
            "choices: expected 2 to 26, or none at all, got 30",
            id="30 choices",
        ),
        pytest.param(
            row(answer="a", choices=["a", "a"]), "choices holds the same text twice", id="twice"
        ),
        pytest.param(
            row(answer="c", choices=["a", "b"]), "the answer is not among the choices", id="none"
        ),
        pytest.param(row(record_id="MRN-0000"), "repeats the record_id of line 1", id="an id"),
        pytest.param(
            row(question="\ud800"),
            "question holds half of a character (a lone surrogate), which no file can store",
            id="a lone surrogate",
        ),
        pytest.param(
            row(choices=["\udc00", "b"]),
            "choices holds half of a character (a lone surrogate), which no file can store",
            id="a lone surrogate in a choice",
        ),
        pytest.param(
            b'{"unit":"a","unit":"b"}', "has the same key twice", id="a key twice, case 09"
        ),
    ],
)
def test_every_kind_of_fault_is_named_by_line(tmp_path: Path, line: bytes, what: str) -> None:
    assert faults(tmp_path, GOOD, line) == [(2, what)]


def test_a_key_of_no_format_is_counted_and_not_named(tmp_path: Path) -> None:
    ((line, what),) = faults(tmp_path, b'{"Mustermann, Erika 1900-01-01": "x"}')
    assert line == 1
    assert "has 1 unknown key(s)" in what
    assert "Mustermann" not in what


def test_a_byte_order_mark_is_named_as_what_it_is(tmp_path: Path) -> None:
    assert faults(tmp_path, b"\xef\xbb\xbf" + GOOD) == [
        (1, "begins with a byte-order mark; save the file as UTF-8 without one")
    ]
    path = tmp_path / "utf-16.jsonl"
    path.write_bytes(GOOD.decode().encode("utf-16"))
    assert [one.what for one in inspect_records(path).faults] == ["is UTF-16; save it as UTF-8"]


def test_all_faults_are_told_at_once_up_to_twenty_and_the_rest_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_bytes(b"\n".join([b"{"] * 25))
    with pytest.raises(ParameterError) as refused:
        refuse([(str(path), fault) for fault in inspect_records(path).faults])
    lines = str(refused.value).splitlines()
    assert lines[0] == f"{path}:1: is not JSON (column 2)"
    assert lines[19] == f"{path}:20: is not JSON (column 2)"
    assert lines[20:] == ["and 5 more faults"]


def test_no_message_shows_anything_of_a_record(tmp_path: Path) -> None:
    bad = [
        GOOD,
        GOOD,
        row(SENTINEL="x"),
        row(answer="SENTINEL\nSENTINEL"),
        row(answer="SENTINEL", choices=["SENTINEL-a", "SENTINEL-a"]),
        GOOD[:-1] + b', "unit": "SENTINEL"}',
        GOOD[:-1] + b", SENTINEL}",
        b"SENTINEL" + GOOD,
        GOOD + b"\xff",
        row(unit=["SENTINEL"]),
    ]
    told = faults(tmp_path, *bad)
    assert len({line for line, _ in told}) == len(bad) - 1
    text = "\n".join(what for _, what in told)
    assert not any(secret in text for secret in ("SENTINEL", "Mustermann", "Erika", "MRN"))
    assert "SENTINEL" not in repr(inspect_records(tmp_path / "records.jsonl"))


def test_a_bad_pool_sample_is_named_by_line_and_the_pool_is_public() -> None:
    sample = b'{"answer":"4","choices":["4"],"question":"8fedd","sample_id":"pool-0000"}\n'
    with pytest.raises(ParameterError, match=r"pool:1: choices: expected 2 to 26") as refused:
        parse_pool(sample + sample, where="pool")
    assert "pool:2: repeats the sample_id 'pool-0000' of line 1" in str(refused.value)
