"""Who decides: written as people write names, and harmless wherever it is shown."""

from __future__ import annotations

import unicodedata
from datetime import timedelta

import pytest
from ledger_world import PLAN, START, memory_ledger

from lada_secure.errors import LedgerError, ParameterError
from lada_secure.privacy.accounting.fields import MAX_PERSON, check_person, person_fault
from lada_secure.privacy.ledger.entries import DecisionEntry, parse_entry

EXPIRES = START + timedelta(days=1)


@pytest.mark.parametrize(
    "name",
    [
        "Dr. Ana O'Neil, data protection",
        "Müller-Lüdenscheidt (IT), Klinik Nord",
        "김서연, 개인정보 보호책임자",
        "Zoë d’Arcy",
        "policy-of-site-a",
        "dr.weber:2",
        "x" * MAX_PERSON,
    ],
)
def test_names_and_roles_of_many_scripts_are_taken_and_read_back(name: str) -> None:
    name = unicodedata.normalize("NFC", name)
    book = memory_ledger()
    entry = book.decide(
        "approve", study_id="study", plan_hash=PLAN, expires=EXPIRES, decided_by=name
    )
    read = parse_entry(entry.line(), where="entry")
    assert isinstance(read, DecisionEntry)
    assert read.decided_by == name


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("", id="empty"),
        pytest.param(" Ana", id="a space in front"),
        pytest.param("Ana ", id="a space behind"),
        pytest.param("Ana  Weber", id="two spaces"),
        pytest.param("x" * (MAX_PERSON + 1), id="too long"),
        pytest.param("Ana\nWeber", id="a line break"),
        pytest.param("Ana\tWeber", id="a tab"),
        pytest.param("Ana\x1b[31m", id="a terminal's command"),
        pytest.param("Ana\u202eWeber", id="a change of direction"),
        pytest.param("Ana\u200bWeber", id="a space without width"),
        pytest.param("Ana\u3164Weber", id="a letter that nobody sees"),
        pytest.param("Ana\ufe0fWeber", id="a variation selector"),
        pytest.param("Ana\u00a0Weber", id="another space"),
        pytest.param("<b>Ana</b>", id="HTML"),
        pytest.param("Ana & Co", id="an ampersand"),
        pytest.param('Ana "Weber"', id="a double quote"),
        pytest.param("Ana | Weber", id="a table cell of Markdown"),
        pytest.param("Ana `Weber`", id="a backquote"),
        pytest.param("[Ana](x)", id="a link of Markdown"),
        pytest.param("Ana $HOME", id="a variable"),
        pytest.param("{{ Ana }}", id="a template"),
        pytest.param("\ud800", id="half a surrogate pair"),
        pytest.param("Ana\uff1cWeber", id="a wide less-than"),
        pytest.param(unicodedata.normalize("NFD", "Zoë"), id="not in normal form C"),
        pytest.param("-- Ana", id="an option"),
    ],
)
def test_what_could_be_more_than_a_name_is_refused_and_nothing_is_recorded(name: str) -> None:
    assert person_fault(name)
    with pytest.raises(ParameterError, match=r"^--by: "):
        check_person("--by", name)
    book = memory_ledger()
    with pytest.raises(ParameterError, match=r"^decided_by: "):
        book.decide("approve", study_id="study", plan_hash=PLAN, expires=EXPIRES, decided_by=name)
    assert len(book.entries()) == 1


def test_a_foreign_ledger_is_held_to_the_same_names() -> None:
    book = memory_ledger()
    entry = book.decide(
        "approve", study_id="study", plan_hash=PLAN, expires=EXPIRES, decided_by="Ana"
    )
    with pytest.raises(LedgerError, match="decided_by: the character '<' is not taken"):
        parse_entry(entry.line().replace(b'"Ana"', b'"<i>Ana"'), where="entry 1")


def test_a_decision_is_compared_with_the_latest_one_while_nobody_else_writes() -> None:
    book = memory_ledger()
    seen = []

    def decide() -> None:
        book.decide(
            "approve",
            study_id="study",
            plan_hash=PLAN,
            expires=EXPIRES,
            decided_by="Ana",
            check=seen.append,
        )

    decide()
    decide()
    assert seen == [None, book.entries()[1]]
    assert book.latest_decision("study") == book.entries()[2]
    assert book.latest_decision("other") is None
