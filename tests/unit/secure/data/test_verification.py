"""Whether an open answer is the gold one, by each rule."""

from __future__ import annotations

import math

import pytest

from lada_secure.data.verification import EXACT, Rule, Verifier
from lada_secure.errors import ParameterError


@pytest.mark.parametrize(
    ("rule", "tolerance", "given", "gold", "right"),
    [
        pytest.param("exact", 0.0, "42", "42", True, id="exact takes the same text"),
        pytest.param("exact", 0.0, "42.", "42", False, id="exact takes nothing else"),
        pytest.param("normalised", 0.0, " Gout. ", "gout", True, id="case, spacing, punctuation"),
        pytest.param("normalised", 0.0, "ﬁbrosis", "fibrosis", True, id="Unicode variants"),
        pytest.param("normalised", 0.0, "gout, acute", "gout", False, id="more than the answer"),
        pytest.param("normalised", 0.0, "4.0", "4", False, id="normalised reads no numbers"),
        pytest.param("numeric", 0.0, "4.0", "4", True, id="one number in two spellings"),
        pytest.param("numeric", 0.0, "1,234", "1234", True, id="groups of three digits"),
        pytest.param("numeric", 0.0, "1,5", "15", False, id="a comma that groups nothing"),
        pytest.param("numeric", 0.0, "1,5 mg", "1 5 mg", False, id="a decimal comma and no unit"),
        pytest.param("numeric", 9.0, "5-6", "5", False, id="a range is no number with a unit"),
        pytest.param("numeric", 9.0, "12 000", "12", False, id="a space that groups"),
        pytest.param("numeric", 0.0, "80.0/min", "80 /min", True, id="a unit that is a rate"),
        pytest.param("numeric", 0.0, "37.0 °C", "37℃", True, id="a unit with a degree sign"),
        pytest.param("numeric", 0.0, ".5", "0.5", True, id="no digit before the point"),
        pytest.param("numeric", 0.0, "$.5", "5", False, id="a point behind a currency"),
        pytest.param("numeric", 0.0, "$5", "5", True, id="a currency in front"),
        pytest.param("numeric", 0.0, "−3", "-3", True, id="the typographic minus"),
        pytest.param("numeric", 0.0, "1e3", "1000", True, id="an exponent"),
        pytest.param("numeric", 0.0, "5 mg", "5 g", False, id="another unit"),
        pytest.param("numeric", 0.0, "5 MG.", "5 mg", True, id="the same unit"),
        pytest.param("numeric", 0.0, "12%", "12 %", True, id="a unit without a space"),
        pytest.param("numeric", 0.01, "101", "100", True, id="within the relative tolerance"),
        pytest.param("numeric", 0.01, "102", "100", False, id="beyond the relative tolerance"),
        pytest.param("numeric", 0.01, "0.01", "0", True, id="absolute where the gold is 0"),
        pytest.param("numeric", 0.01, "0.02", "0", False, id="absolute and beyond"),
        pytest.param("numeric", 0.01, "0.01", "0.003", False, id="small numbers stay apart"),
        pytest.param("numeric", 0.0, "none", "None.", True, id="texts are compared as texts"),
        pytest.param("numeric", 0.0, "e5", "E5", True, id="an exponent alone is a text"),
        pytest.param("numeric", 0.0, "1e999", "1e999", True, id="beyond any float, the same"),
        pytest.param("numeric", 9.0, "1e999", "2e999", False, id="beyond any float, another"),
        pytest.param(
            "numeric", 0.0, "9" * 40, "9" * 39 + "8", False, id="more digits than a float"
        ),
        pytest.param("numeric", 0.5, "five", "5", False, id="a number and a text"),
    ],
)
def test_rules(rule: Rule, tolerance: float, given: str, gold: str, right: bool) -> None:
    assert Verifier(rule=rule, tolerance=tolerance).right(given, gold) is right


@pytest.mark.parametrize("tolerance", [-0.1, math.inf, math.nan])
def test_a_tolerance_that_is_none_is_refused(tolerance: float) -> None:
    with pytest.raises(ParameterError, match="finite tolerance"):
        Verifier(rule="numeric", tolerance=tolerance)


@pytest.mark.parametrize("rule", ["exact", "normalised"])
def test_rules_without_numbers_have_no_tolerance(rule: Rule) -> None:
    with pytest.raises(ParameterError, match="has no tolerance"):
        Verifier(rule=rule, tolerance=0.1)


def test_what_nobody_names_is_exact() -> None:
    assert Verifier() == EXACT
