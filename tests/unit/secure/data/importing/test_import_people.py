"""Whose records an import takes: one person in several forms, nobody, held out, cut by a cap."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from import_sources import (
    OPEN,
    nothing,
    request,
    rows,
    write_csv,
)

from lada_secure.data.importing.run import ImportRefused, run_import


def test_people_who_are_held_out_no_more_are_counted(tmp_path: Path) -> None:
    source = write_csv(tmp_path / "c.csv", rows(300))
    half = OPEN + "[split]\nheld_out = 0.5\n"
    first = run_import(request(tmp_path, source, half), progress=nothing)
    assert first["held_out_no_more"] == 0
    assert run_import(request(tmp_path, source, half), progress=nothing)["held_out_no_more"] == 0
    # A mapping that was copied without its salt.
    (tmp_path / "mapping.salt").unlink()
    moved = run_import(request(tmp_path, source, half), progress=nothing)["held_out_no_more"]
    assert 0 < moved < 100


def warned(tmp_path: Path, units: Sequence[str], unit: str, split: str = "") -> dict[str, Any]:
    people = [(f"r{at}", one, f"Q{at}?", "", "a", "") for at, one in enumerate(units)]
    source = write_csv(tmp_path / "c.csv", people)
    mapping = OPEN.replace('unit = "unit"', f"unit = {unit}") + split
    return run_import(request(tmp_path, source, mapping), progress=nothing)


def test_people_in_several_forms_are_warned_of_and_the_filter_makes_them_one(
    tmp_path: Path,
) -> None:
    units = ["007", "7", "7.0", "ward/7", "8", "8", "123/2024", "124/2024"]
    told = warned(tmp_path, units, '"unit"')
    assert told["units"]["may_be_one_person"] == 4
    (warning,) = told["warnings"]
    assert warning.startswith("4 units may be one person with another one")
    for_others = json.loads((tmp_path / "out" / "import-report.json").read_bytes())
    assert for_others["units"]["may_be_one_person"] == 10
    assert for_others["warnings"][0].startswith("10 units may be")
    told = warned(tmp_path, units[:6], """{ template = "{{ row['unit'] | plain_id }}" }""")
    assert told["warnings"] == []
    assert told["units"]["units"] == 2


def test_a_rejected_row_makes_nobody_alike(tmp_path: Path) -> None:
    source = write_csv(
        tmp_path / "c.csv",
        [("r1", "7", "Q?", "", "a", ""), ("r1", "007", "R?", "", "a", "")],
    )
    asked = request(tmp_path, source, OPEN, most_rejects=0.5)
    assert run_import(asked, progress=nothing)["units"]["may_be_one_person"] == 0


@pytest.mark.parametrize("name", ["0", "000", "9999999", "Test"])
def test_a_placeholder_with_far_more_records_than_others_is_warned_of(
    name: str, tmp_path: Path
) -> None:
    people = [f"p{at}" for at in range(20)]
    told = warned(tmp_path, people + 6 * [name], '"unit"')
    assert told["units"]["may_be_nobody"] == 1
    assert "look like a placeholder" in told["warnings"][0]
    # The template that the warning names.
    shown = told["warnings"][0].partition("template = ")[2]
    template = shown.replace("the column", "unit").replace("'0'", f"'{name}'")
    with pytest.raises(ImportRefused, match="6 of 26 rows"):
        warned(tmp_path, people + 6 * [name], f"{{ template = {template} }}")
    assert warned(tmp_path, [*people, name], '"unit"')["warnings"] == []


def test_words_for_nobody_are_no_people(tmp_path: Path) -> None:
    with pytest.raises(ImportRefused) as refused:
        warned(tmp_path, ["NN", "N. N.", "anonym", "unbekannt", "p1"], '"unit"')
    assert refused.value.told["rejected_by_reason"] == {"unit-looks-missing": 4}


def test_that_nobody_is_held_out_is_said(tmp_path: Path) -> None:
    told = warned(tmp_path, ["p1", "p2"], '"unit"', "[split]\nheld_out = 1e-9\n")
    assert told["warnings"][0].startswith("nobody of 2 unit(s) is held out, though")
    assert warned(tmp_path, ["p1", "p2"], '"unit"')["warnings"] == []


def test_the_cap_is_counted_over_people_to_train_on(tmp_path: Path) -> None:
    source = write_csv(tmp_path / "c.csv", rows(90))
    asked = request(tmp_path, source, OPEN + "[split]\nheld_out = 0.5\n", cap=2)
    told = run_import(asked, progress=nothing)
    assert told["units"]["units"] == 30
    assert told["units"]["by_records"]["3-5"] == 30
    assert told["units"]["cut_by_cap"] == told["records"] // 3
    assert told["units"]["records_cut_by_cap"] == told["records"] // 3
