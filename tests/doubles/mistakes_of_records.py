# ruff: noqa: E501
"""Mistakes in a site's private records; see `mistakes`."""

from __future__ import annotations

import codecs
from typing import Any

from mistakes import OF_SITE, RECORDS, SITE, Mistake, Spoil, content, gone, replaced


def record(**changes: Any) -> Spoil:
    """Changes the record of the fourth line."""
    return lambda study: study.lines(RECORDS, lambda rows: rows[3].update(changes))


RECORDS_ROWS = (
    Mistake(
        name="no file of records",
        command=OF_SITE,
        check="records",
        says="records: cannot read",
        spoil=gone(RECORDS),
    ),
    Mistake(
        name="an empty file of records",
        command=OF_SITE,
        check="records",
        says="holds no line; at least one is needed",
        spoil=replaced(RECORDS, b""),
    ),
    Mistake(
        name="records with a byte-order mark",
        command=OF_SITE,
        check="records",
        says="hospital-a.jsonl:1: begins with a byte-order mark; save the file as UTF-8 without one",
        spoil=content(RECORDS, lambda raw: codecs.BOM_UTF8 + raw),
    ),
    Mistake(
        name="records as UTF-16",
        command=OF_SITE,
        check="records",
        says="is UTF-16; save it as UTF-8",
        spoil=content(RECORDS, lambda raw: raw.decode().encode("utf-16")),
    ),
    Mistake(
        name="records as a table of commas",
        command=OF_SITE,
        check="records",
        says="has no line that begins an object; expected one JSON object a line, `lada data import` makes",
        spoil=replaced(RECORDS, b"record_id,unit,question\n1,p1,Is it flu?\n"),
    ),
    Mistake(
        name="records as one JSON list",
        command=OF_SITE,
        check="records",
        says="is one JSON list; expected one JSON object a line",
        spoil=content(RECORDS, lambda raw: b"[" + b",".join(raw.splitlines()) + b"]"),
    ),
    Mistake(
        name="a line is cut",
        command=OF_SITE,
        check="records",
        says="hospital-a.jsonl:1: is not JSON",
        spoil=content(RECORDS, lambda raw: raw.replace(b"}\n", b"\n", 1)),
    ),
    Mistake(
        name="a record id twice",
        command=OF_SITE,
        check="records",
        says="hospital-a.jsonl:5: repeats the record_id of line 3",
        spoil=lambda study: study.lines(
            RECORDS, lambda rows: rows[4].update(record_id=rows[2]["record_id"])
        ),
    ),
    Mistake(
        name="an answer that is none of the choices",
        command=OF_SITE,
        check="records",
        says="hospital-a.jsonl:4: the answer is not among the choices",
        spoil=record(choices=["yes", "no"], answer="maybe"),
    ),
    Mistake(
        name="a control character in a text",
        command=OF_SITE,
        check="records",
        says="1 record(s) hold control characters (lines 4)",
        level="warning",
        spoil=record(question="What\x00 is it?"),
    ),
    Mistake(
        name="no unit",
        command=OF_SITE,
        check="records",
        says="hospital-a.jsonl:4: lacks unit; expected the keys record_id, unit",
        spoil=lambda study: study.lines(RECORDS, lambda rows: rows[3].pop("unit")),
    ),
    Mistake(
        name="a unit that is a number",
        command=OF_SITE,
        check="records",
        says="hospital-a.jsonl:4: unit is a number, expected text",
        spoil=record(unit=17),
    ),
    Mistake(
        name="a unit that says N/A",
        command=OF_SITE,
        check="records",
        says="the unit looks like a missing value in 1 record(s), lines 4; name the person",
        spoil=record(unit="N/A"),
    ),
    Mistake(
        name="one person in two spellings",
        command=OF_SITE,
        check="records",
        says="hospital-a.jsonl:4: one unit in 2 spellings, lines 4, 5; spell it alike",
        spoil=lambda study: study.lines(
            RECORDS,
            lambda rows: (rows[3].update(unit="Weber, A."), rows[4].update(unit="weber,  a.")),
        ),
    ),
    Mistake(
        name="the hospital stands in the column of the person",
        command=OF_SITE,
        check="records",
        says="all 360 records are of one unit",
        level="warning",
        spoil=lambda study: study.lines(
            RECORDS, lambda rows: [row.update(unit="hospital-a") for row in rows]
        ),
    ),
    Mistake(
        name="the record stands in the column of the person",
        command=OF_SITE,
        check="records",
        says="the unit of every record is its record_id",
        level="warning",
        spoil=lambda study: study.lines(
            RECORDS, lambda rows: [row.update(unit=row["record_id"]) for row in rows]
        ),
    ),
    Mistake(
        name="records that are held out and trained on",
        command=OF_SITE,
        check="records",
        says="share a record_id with the training records",
        level="warning",
        spoil=lambda study: study.toml(SITE, held_out=str(study.path(RECORDS))),
    ),
    Mistake(
        name="a record that is too long for the model",
        command=OF_SITE,
        check="records.length",
        says="hospital-a.jsonl:4: too long for the model: needs 2412 tokens, at most 512",
        spoil=record(question="what is " * 600),
    ),
)
