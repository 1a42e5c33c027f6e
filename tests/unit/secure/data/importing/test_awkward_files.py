"""Every awkward file is imported right or refused with line and column, as the page says."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from awkward_files import BASE, CASES, Awkward

from lada_secure.data.importing.run import ImportRefused, ImportRequest, run_import
from lada_secure.data.records import inspect_records
from lada_secure.errors import ParameterError
from lada_secure.privacy.release.units import unit_faults

PAGE = Path(__file__).parents[5] / "docs" / "import-data.md"


def request(tmp_path: Path, case: Awkward) -> ImportRequest:
    record = {name: one for name, one in {**BASE, **case.record}.items() if one is not None}
    told = {"format": "lada-mapping/1", "source": dict(case.source), "record": record}
    (tmp_path / "mapping.toml").write_text(tomli_w.dumps(told), encoding="utf-8")
    (tmp_path / case.file).write_bytes(case.content)
    return ImportRequest(
        source=str(tmp_path / case.file),
        mapping=tmp_path / "mapping.toml",
        out=tmp_path / "out",
        most_rejects=1.0,
    )


def rejects(out: Path) -> tuple[tuple[int, str, str], ...]:
    with (out / "rejects.csv").open(encoding="utf-8", newline="") as file:
        return tuple(
            (int(one["line"]), one["reason"], one["column"]) for one in csv.DictReader(file)
        )


def as_fields(expected: Any) -> dict[str, Any]:
    if isinstance(expected, dict):
        return expected
    record_id, answer = expected
    return {"record_id": record_id, "answer": answer}


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_it_is_imported_right_or_refused_with_its_line(case: Awkward, tmp_path: Path) -> None:
    asked = request(tmp_path, case)
    if case.refused:
        with pytest.raises((ParameterError, ImportRefused), match=re.escape(case.refused)):
            run_import(asked, progress=lambda *_: None)
        assert not (asked.out / "records.jsonl").exists()
        return
    run_import(asked, progress=lambda *_: None)
    # By the parser of a site: what is imported is always accepted.
    found = inspect_records(asked.out / "records.jsonl")
    assert found.faults == ()
    assert unit_faults(found, spellings="refuse", missing_like="refuse") == ()
    assert len(found.records) == len(case.records)
    for record, expected in zip(found.records, case.records, strict=True):
        for name, value in as_fields(expected).items():
            assert getattr(record, name) == value
    assert rejects(asked.out) == case.rejects


def test_there_are_sixty_and_a_third_were_met_elsewhere() -> None:
    assert len(CASES) >= 60
    assert len({case.name for case in CASES}) == len(CASES)
    assert sum(bool(case.met) for case in CASES) >= len(CASES) / 3 >= 20


def test_no_message_and_no_reject_holds_what_a_row_says(tmp_path: Path) -> None:
    for number, case in enumerate(CASES):
        folder = tmp_path / str(number)
        folder.mkdir()
        asked = request(folder, case)
        try:
            told = json.dumps(run_import(asked, progress=lambda *_: None))
        except (ParameterError, ImportRefused) as error:
            told = str(error)
        for secret in ("flu", "gout", "llner", "1.23457"):
            assert secret not in told
            if (asked.out / "rejects.csv").exists():
                assert secret not in (asked.out / "rejects.csv").read_text(encoding="utf-8")


def table_row(case: Awkward) -> str:
    """A case's line in the table of the page."""
    if case.refused:
        lined = re.match(r"cases\.[a-z]+:[0-9]", case.refused)
        became = "refused, with its line" if lined else "refused"
    elif case.rejects:
        reasons = sorted({f"`{reason}`" for _, reason, _ in case.rejects})
        became = f"rejected: {', '.join(reasons)}"
    else:
        became = "imported"
    return f"| {case.name} | {became} | {case.met} |"


def test_the_page_lists_every_file_with_what_becomes_of_it() -> None:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    assert [table_row(case) for case in CASES if table_row(case) not in lines] == []
