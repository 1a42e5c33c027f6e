"""JSON files are read whole, whatever stands around their list; none of it need fit into memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from lada_secure.data.importing import json_files
from lada_secure.data.importing.mapping import SourceSettings
from lada_secure.data.importing.rows import Reject, Row
from lada_secure.data.importing.sources import open_source
from lada_secure.errors import ParameterError


def rows(path: Path, text: str, at: str = "") -> list[Row | Reject]:
    path.write_text(text, encoding="utf-8")
    return list(open_source(str(path), SourceSettings(at=at)).read(frozenset({"a"})))


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ('[{"a": 1}, {"a": 2}]', ""),
        ('\n[ {"a": 1},\n{"a": 2} ] \n', ""),
        ('{"first": {}, "rows": [{"a": 1}, {"a": 2}], "last": [[1], {"x": 2}, []]}', "rows"),
        ('{"x": {"y": [{"a": 1}, {"a": 2}], "z": 1}, "w": []}', "x.y"),
    ],
)
def test_rows_are_those_of_the_list(text: str, at: str, tmp_path: Path) -> None:
    found = rows(tmp_path / "c.json", text, at)
    assert [row.cells for row in found if isinstance(row, Row)] == [{"a": "1"}, {"a": "2"}]


@pytest.mark.parametrize(
    ("text", "at", "told"),
    [
        ('[{"a": 1}]\n[{"a": 2}]', "", r"c\.json:2: something stands behind"),
        ('[{"a": 1}] x', "", "something stands behind"),
        ("[]\n[]", "", r"c\.json:2: something stands behind"),
        ('{"rows": [],\n"rows": []}', "rows", r"c\.json:2: the key 'rows' stands here again"),
        ('{"x": {"y": []}, "x": 1}', "x.y", "the key 'x' stands here again"),
        ('{"x": {"y": [], "y": []}}', "x.y", "the key 'y' stands here again"),
        ('{"rows": []', "rows", "expected a comma or }"),
        ('{"rows": [{"a": 1}], "b": }', "rows", "this is not JSON"),
        ('{"rows": []} {}', "rows", "something stands behind"),
        ("{}", "rows", "there is no key 'rows'"),
    ],
)
def test_what_is_not_the_list_is_no_row_and_never_passed_over_in_silence(
    text: str, at: str, told: str, tmp_path: Path
) -> None:
    with pytest.raises(ParameterError, match=told):
        rows(tmp_path / "c.json", text, at)


def test_what_is_no_object_and_what_has_a_key_twice_are_rejected_as_such(tmp_path: Path) -> None:
    text = '[null,\n{"a": 1, "b": {"x": 1, "x": 2}},\n3,\n{"a": 2}]'
    assert rows(tmp_path / "c.json", text) == [
        Reject(1, "not-json"),
        Reject(2, "key-twice"),
        Reject(3, "not-json"),
        Row(4, {"a": "2"}),
    ]


def test_a_list_beside_the_rows_may_be_longer_than_what_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_files, "MAX_CELL_CHARACTERS", 100_000)
    long = ", ".join(['{"b": "text"}'] * 20_000)
    text = f'{{"before": [{long}], "rows": [{{"a": 1}}], "behind": [{long}]}}'
    assert rows(tmp_path / "c.json", text, "rows") == [Row(1, {"a": "1"})]
