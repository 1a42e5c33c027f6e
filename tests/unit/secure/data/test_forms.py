"""Prompts, targets and reading in every answer form."""

from __future__ import annotations

import pytest

from lada_secure.data.forms import (
    CLOZE,
    FORMS,
    FormName,
    ListedForm,
    ReasonedForm,
    answer_form,
    letter,
)
from lada_secure.data.prompts import answer_of, option_text, prompt_of, rationale_of
from lada_secure.data.verification import Verifier

LISTED, REASONED = ListedForm(), ReasonedForm()
CHOICES = ("gout", "gout. chronic", "wart")
# Every letter names another option than the one it is.
CROSSED = ("B", "C", "A")


def test_the_cloze_form_is_what_it_was_byte_for_byte() -> None:
    for choices, answer in ((CHOICES, "wart"), ((), "7")):
        assert CLOZE.prompt("Group?", choices) == prompt_of("Group?", choices)
        for reason in (None, "it is rough"):
            path = rationale_of(answer, choices, reason)
            assert CLOZE.target(answer, choices, reason) == path
            assert CLOZE.answer(path, choices) == answer_of(path, choices) == answer
    assert CLOZE.options(CHOICES) == tuple(option_text(one) for one in CHOICES)
    assert CLOZE.begun("wart", CHOICES) == " wart."


def test_listed_options_come_with_letters_and_the_answer_before_the_reason() -> None:
    assert LISTED.prompt("Group?", CHOICES) == (
        "Group?\nA. gout\nB. gout. chronic\nC. wart\n"
        "Answer with the letter of the right option in a line, then give the reason.\nAnswer:"
    )
    assert LISTED.target("wart", CHOICES, "it is rough") == " C\nit is rough"
    assert LISTED.target("wart", CHOICES, None) == " C"
    assert LISTED.options(CHOICES) == (" A", " B", " C")
    assert LISTED.begun("wart", CHOICES) == " C\n"


def test_a_reasoned_path_ends_in_its_answer() -> None:
    assert REASONED.prompt("Group?", CHOICES) == (
        "Group?\nA. gout\nB. gout. chronic\nC. wart\n"
        'Reason step by step. End with a line that says "Answer:" and the letter of the right '
        "option.\nReasoning:"
    )
    assert REASONED.target("wart", CHOICES, "it is rough") == " it is rough\nAnswer: C"
    assert REASONED.target("wart", CHOICES, None) == "\nAnswer: C"
    assert REASONED.before_answer(" it is rough\nAnswer: C") == " it is rough\nAnswer:"
    assert REASONED.before_answer("\nAnswer: C.\n") == "\nAnswer:"


def test_open_questions_in_the_two_forms_of_an_answer_line() -> None:
    assert LISTED.prompt("2+2", ()) == "2+2\n"
    assert LISTED.target("4", (), "two twos") == "two twos\n4"
    assert REASONED.prompt("2+2", ()) == (
        '2+2\nReason step by step. End with a line that says "Answer:" and the answer alone.\n'
        "Reasoning:"
    )
    assert REASONED.target("4", (), "two twos") == " two twos\nAnswer: 4"
    assert REASONED.answer(" two twos\nAnswer: 4\n", ()) == "4"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        pytest.param("B", "C", id="a letter alone"),
        pytest.param("B.", "C", id="a letter with a full stop"),
        pytest.param("(B)", "C", id="a letter in parentheses"),
        pytest.param("B) C", "C", id="a letter with its option"),
        pytest.param("B: C.", "C", id="a letter with its option and a full stop"),
        pytest.param("B. A", None, id="a letter with another option"),
        pytest.param("B C", None, id="two letters"),
        pytest.param("b", None, id="a small letter"),
        pytest.param("D", None, id="a letter that no option has"),
        pytest.param("(B", None, id="half a pair of parentheses"),
        pytest.param("AB", None, id="no letter of three options"),
        pytest.param("B because", None, id="a letter and something else"),
        pytest.param("", None, id="nothing"),
    ],
)
def test_letters_name_options_even_where_options_are_letters(
    line: str, expected: str | None
) -> None:
    assert LISTED.answer(f" {line}\nit is so", CROSSED) == (expected if line else None)
    assert REASONED.answer(f" it is so\nAnswer: {line}", CROSSED) == expected


@pytest.mark.parametrize(
    "path",
    [
        pytest.param("", id="nothing"),
        pytest.param(" \n", id="white space"),
        pytest.param(" it is rough", id="no answer line"),
        pytest.param(" it is rough\nAnswer:", id="an answer line without an answer"),
        pytest.param(" it is rough\nAnswer: C\nand so on", id="text behind the answer"),
        pytest.param(" it is rough\nThe Answer: C", id="a line that begins otherwise"),
        pytest.param(" it is rough\nanswer: C", id="another case"),
    ],
)
def test_a_reasoned_path_without_a_last_answer_line_cannot_be_read(path: str) -> None:
    assert REASONED.answer(path, CHOICES) is None
    assert not REASONED.right(path, CHOICES, "wart")


def test_an_answer_line_inside_the_reasoning_decides_nothing() -> None:
    reason = "one would say\nAnswer: A\nbut it is rough"
    assert REASONED.answer(REASONED.target("wart", CHOICES, reason), CHOICES) == "wart"
    assert LISTED.answer(LISTED.target("wart", CHOICES, reason), CHOICES) == "wart"
    assert REASONED.before_answer(REASONED.target("wart", CHOICES, reason)).count("Answer:") == 2


def test_line_breaks_in_an_option_make_no_other_option() -> None:
    choices = ("one\nB. trap", "two")
    assert "A. one B. trap\nB. two\n" in LISTED.prompt("?", choices)
    assert LISTED.answer("B", choices) == "two"
    assert LISTED.answer("A. one B. trap", choices) == choices[0]


@pytest.mark.parametrize(
    ("form", "path", "has"),
    [
        pytest.param("cloze", " wart.", False, id="cloze: the option alone"),
        pytest.param("cloze", " wart. rough", True, id="cloze: with a reason"),
        pytest.param("listed", " C. wart\n", False, id="listed: the letter with its option"),
        pytest.param("listed", " C\nrough", True, id="listed: with a reason"),
        pytest.param("reasoned", "\nAnswer: C. wart", False, id="reasoned: the line alone"),
        pytest.param("reasoned", " rough\nAnswer: C", True, id="reasoned: with a reason"),
    ],
)
def test_bare_answers_are_told_from_reasons(form: FormName, path: str, has: bool) -> None:
    assert answer_form(form).right(path, CHOICES, "wart")
    assert answer_form(form).has_reasons(path, CHOICES, "wart") is has


@pytest.mark.parametrize("name", FORMS)
def test_open_answers_are_right_by_the_verifier(name: FormName) -> None:
    near = answer_form(name, Verifier(rule="numeric", tolerance=0.1))
    path = near.target("41", (), "about")
    assert near.right(path, (), "42")
    assert not answer_form(name).right(path, (), "42")


@pytest.mark.parametrize("name", FORMS)
def test_the_verifier_has_no_say_in_options(name: FormName) -> None:
    form = answer_form(name, Verifier(rule="normalised"))
    choices = ("gout", "Gout", "wart")
    assert form.right(form.target("Gout", choices, "so"), choices, "Gout")
    assert not form.right(form.target("Gout", choices, "so"), choices, "gout")


def test_letters_go_on_behind_z() -> None:
    places = (0, 25, 26, 27, 51, 52, 701, 702)
    assert [letter(at) for at in places] == ["A", "Z", "AA", "AB", "AZ", "BA", "ZZ", "AAA"]
