"""Prompts, paths, and reading an answer out of a path."""

from __future__ import annotations

import pytest

from lada_secure.data.prompts import answer_of, option_text, prompt_of, rationale_of

CHOICES = ("gout", "gout. chronic", "wart", "hernia")


def test_a_multiple_choice_prompt_does_not_list_its_options() -> None:
    assert prompt_of("Diagnosis: X. Group?", CHOICES) == "Diagnosis: X. Group?\nAnswer:"


def test_an_open_prompt_is_the_question_alone() -> None:
    assert prompt_of("4fg", ()) == "4fg\n"


@pytest.mark.parametrize("rationale", [None, "a joint disease, pain. More"])
@pytest.mark.parametrize("answer", CHOICES)
def test_the_answer_is_read_back_from_every_path(answer: str, rationale: str | None) -> None:
    path = rationale_of(answer, CHOICES, rationale)
    assert path.startswith(option_text(answer))
    assert answer_of(path, CHOICES) == answer


@pytest.mark.parametrize("rationale", [None, "f8g1", "two\nlines"])
def test_an_open_answer_is_the_last_line(rationale: str | None) -> None:
    assert answer_of(rationale_of("7", (), rationale), ()) == "7"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(" wart", "wart", id="a path cut off after the answer is readable"),
        pytest.param(" gout. chronic. pain", "gout. chronic", id="the longer option wins"),
        pytest.param(" gouty. pain", None, id="an option's beginning is no option"),
        pytest.param(" fever. wart.", None, id="an option later in the path does not count"),
        pytest.param("", None, id="an empty path is unreadable"),
        pytest.param(" ", None, id="white space is unreadable"),
    ],
)
def test_reading_an_option(text: str, expected: str | None) -> None:
    assert answer_of(text, CHOICES) == expected


def test_an_empty_open_path_is_unreadable() -> None:
    assert answer_of(" \n", ()) is None


@pytest.mark.parametrize(
    "choices",
    [
        pytest.param(("one",), id="a single choice"),
        pytest.param(("one", "one"), id="the same choice twice"),
        pytest.param(tuple(str(number) for number in range(30)), id="too many choices"),
        pytest.param(("", " "), id="empty choices"),
        pytest.param(("\ud800", "b"), id="half a character"),
    ],
)
@pytest.mark.parametrize("answer", ["one", "", "no choice", "two\nlines", "\ud800"])
def test_whatever_a_record_holds_gives_a_prompt_and_a_path(
    choices: tuple[str, ...], answer: str
) -> None:
    for given in (choices, ()):
        assert prompt_of("?", given).startswith("?\n")
        assert isinstance(rationale_of(answer, given, None), str)
        read = answer_of(rationale_of(answer, given, "so"), given)
        assert read is None or isinstance(read, str)


def test_an_open_answer_of_two_lines_becomes_one() -> None:
    assert rationale_of("7\n8", (), "so") == "so\n7 8"
