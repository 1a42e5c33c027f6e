"""Answer forms for whatever a record holds: total, and what was meant is read back."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from lada_secure.data.forms import FORMS, AnswerForm, answer_form
from lada_secure.data.verification import Rule, Verifier

# What breaks readers: lines of every kind, letters, what the forms themselves write.
HOSTILE = st.sampled_from(
    [
        *("A", "B", "C", "A.", "(B)", "Answer:", "Answer: A", "\nAnswer: B\n", "Answer: C. A"),
        *("\n", "\r\n", "\u2028", "\x0b", "\x1c", "\x85", " ", "\t", "", ".", ":", "\ud800"),
        *("Reasoning:", "gout", "gout.", "gout. chronic", "1e999", "-.5", "$1,234.5 mg", "٣", "−1"),
    ]
)
ANY = st.lists(st.one_of(HOSTILE, st.characters(), st.text(max_size=6)), max_size=8).map("".join)
FORM = st.sampled_from(sorted(FORMS)).map(answer_form)
RULES: tuple[Rule, ...] = ("exact", "normalised", "numeric")


def choices_of(least: int) -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(ANY, min_size=least, max_size=30).map(tuple)


@given(FORM, ANY, choices_of(0), ANY, st.none() | ANY, ANY)
@settings(max_examples=400)
def test_whatever_a_record_holds_every_form_gives_texts_and_reads_any_path(
    form: AnswerForm,
    question: str,
    choices: tuple[str, ...],
    answer: str,
    reason: str | None,
    path: str,
) -> None:
    assert form.prompt(question, choices).startswith(question)
    target = form.target(answer, choices, reason)
    assert len(form.options(choices)) == len(choices)
    for text in (path, target, *(form.begun(one, choices) for one in choices)):
        read = form.answer(text, choices)
        assert read is None or not choices or read in choices
        assert isinstance(form.right(text, choices, answer), bool)
        assert isinstance(form.has_reasons(text, choices, answer), bool)
        assert isinstance(form.before_answer(text), str)


@given(st.sampled_from(["listed", "reasoned"]), choices_of(1), st.data(), st.none() | ANY)
@settings(max_examples=400)
def test_the_option_that_was_meant_is_read_back(
    name: str, choices: tuple[str, ...], data: st.DataObject, reason: str | None
) -> None:
    """Letters are never ambiguous: options may be letters, begin with one another, or be blank."""
    form = answer_form(name)  # type: ignore[arg-type]
    answer = data.draw(st.sampled_from(choices))
    assert form.answer(form.target(answer, choices, reason), choices) == answer
    assert form.right(form.target(answer, choices, reason), choices, answer)


@given(st.data(), st.none() | ANY)
def test_cloze_options_that_stand_in_a_line_are_read_back(
    data: st.DataObject, reason: str | None
) -> None:
    """As files have them: different texts. One that starts with another one wins by its length."""
    parts = st.lists(st.sampled_from(["gout", "wart", ". ", "A", "b"]), min_size=1, max_size=4)
    choices = tuple(
        data.draw(
            st.lists(
                parts.map("".join).filter(lambda one: one.strip() == one),
                min_size=2,
                max_size=6,
                unique=True,
            )
        )
    )
    form = answer_form("cloze")
    answer = data.draw(st.sampled_from(choices))
    read = form.answer(form.target(answer, choices, reason), choices)
    assert read is not None
    assert read == answer or read.startswith(f"{answer}.")


@given(FORM, ANY, st.none() | ANY)
def test_an_open_answer_is_read_back_in_one_line(
    form: AnswerForm, answer: str, reason: str | None
) -> None:
    read = form.answer(form.target(answer, (), reason), ())
    meant = " ".join(answer.splitlines()).strip()
    if meant:
        assert read == meant
    elif form.name == "reasoned":
        assert read is None


@given(st.sampled_from(RULES), st.floats(0, 1e9), ANY, ANY)
def test_every_two_texts_can_be_compared_and_each_agrees_with_itself(
    rule: Rule, tolerance: float, given_answer: str, gold: str
) -> None:
    verifier = Verifier(rule=rule, tolerance=tolerance if rule == "numeric" else 0.0)
    assert isinstance(verifier.right(given_answer, gold), bool)
    assert verifier.right(gold, gold)
