"""Whatever bytes a file holds, a source yields rows in order or says one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lada_secure.data.importing.mapping import SourceSettings
from lada_secure.data.importing.rows import REASONS, Reject, Row, flat_cells
from lada_secure.data.importing.sources import open_source
from lada_secure.errors import LadaError

# Bytes that mean something to one of the readers are likelier than others.
PIECES = st.sampled_from(
    [
        *(b"a", b"b", b"a,b\n", b'"', b'""', b",", b";", b"\n", b"\r", b"\r\n", b"\0", b"\xff"),
        *(b"\xef\xbb\xbf", b"\xff\xfe", b"{", b"}", b"[", b"]", b":", b'{"a":1}', b'"a"', b"1e5"),
        *(b"\\ud83d", b"\xc3\xa4", b" ", b"null", b'{"a":"x","a":"y"}', b'{"entry":[', b"\xef"),
    ]
)
FILES = st.lists(PIECES | st.binary(max_size=4), max_size=40).map(b"".join)


@pytest.mark.parametrize("name", ["c.csv", "c.tsv", "c.jsonl", "c.json", "c.parquet", "c.xlsx"])
@pytest.mark.parametrize("more", [{}, {"at": "entry"}, {"quote": ""}, {"encoding": "utf-16"}])
def test_any_bytes_are_rows_or_one_sentence(
    name: str, more: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / name

    @settings(
        max_examples=25,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    @given(raw=FILES)
    def check(raw: bytes) -> None:
        path.write_bytes(raw)
        try:
            source = open_source(str(path), SourceSettings(**more))  # type: ignore[arg-type]
            found = list(source.read(frozenset({"a"})))
        except LadaError:
            return
        lines = [one.line for one in found]
        assert lines == sorted(lines)
        for one in found:
            if isinstance(one, Reject):
                assert one.reason in REASONS
            else:
                assert isinstance(one, Row)
                assert (
                    "".join(text or "" for text in one.cells.values()).encode("utf-8") is not None
                )

    check()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=20,
)


@given(value=st.dictionaries(st.text(max_size=4), JSON, max_size=5))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_nested_values_become_texts_whatever_they_are(value: dict[str, object]) -> None:
    for text in flat_cells(value).values():
        assert text is None or (isinstance(text, str) and text)
    assert json.dumps(flat_cells(value))
