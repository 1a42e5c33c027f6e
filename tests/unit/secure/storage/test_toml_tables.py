"""TOML files that are none: one sentence, whatever the parser meets."""

from __future__ import annotations

import pytest

from lada_secure.errors import ParameterError
from lada_secure.storage.toml_tables import parse_table


@pytest.mark.parametrize(
    ("text", "told"),
    [
        pytest.param("x = " + "1" * 5_000, "not TOML that can be read: ValueError", id="digits"),
        # Deeper than any limit: sympy, which torch imports, raises Python's in the whole process.
        pytest.param("x = " + "[" * 200_000, "not TOML that can be read: Recursion", id="lists"),
        pytest.param("x = 'open", "not TOML: ", id="a text that does not end"),
    ],
)
def test_what_cannot_be_parsed_is_one_sentence(text: str, told: str) -> None:
    with pytest.raises(ParameterError, match=f"^site.toml: {told}"):
        parse_table(text.encode(), where="site.toml")
