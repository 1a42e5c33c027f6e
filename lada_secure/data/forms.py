"""Answer forms: how a question becomes the text a model reads, and how an answer is read back.

| form | a model reads | and writes |
|---|---|---|
| `cloze` | the question alone | the right option's text, then the reason |
| `listed` | the question and its options with letters | the letter in a line, then the reason |
| `reasoned` | the same | the reason, then a last line `Answer: ` with the letter |

An open question is followed by its reasoning and a last line with the answer in all three; in
`reasoned` that line begins with `Answer: `, too.

All methods are total: they give a text for whatever a record holds. What makes no sensible question
is refused earlier, by file and line (`lada_secure.data.record_faults`). A record that got past that
must not stop a release: stopping would tell that it is there.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final, Literal, TypeAlias

from lada_secure.data.prompts import (
    MAX_CHOICES,
    answer_of,
    option_text,
    prompt_of,
    rationale_of,
)
from lada_secure.data.verification import EXACT, Verifier

FormName: TypeAlias = Literal["cloze", "listed", "reasoned"]

_ANSWER: Final = "Answer:"
# "(B)", "B", "B.", "B)" or "B:", and what stands behind it.
_LETTER_LINE: Final = re.compile(r"(?:\(([A-Z]+)\)|([A-Z]+)(?:[.):]|$))(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerForm(ABC):
    """One form, with the rule by which open answers are right.

    `choices` is everywhere empty for open questions; a gold `answer` is one of them otherwise.
    """

    name: ClassVar[FormName]
    verifier: Verifier = EXACT

    @abstractmethod
    def prompt(self, question: str, choices: tuple[str, ...]) -> str:
        """What a model reads before it writes its path. question: without its options."""

    @abstractmethod
    def target(self, answer: str, choices: tuple[str, ...], rationale: str | None) -> str:
        """What follows `prompt`: the answer with its reasoning.

        Args: rationale: None where only the answer is known. Line breaks in an open answer become
            spaces, for it is one line of the path.
        """

    @abstractmethod
    def answer(self, path: str, choices: tuple[str, ...]) -> str | None:
        """Read the answer out of a path. Returns: one of `choices`, or an open answer; None where
        no option, or nothing at all, can be read."""

    @abstractmethod
    def options(self, choices: tuple[str, ...]) -> tuple[str, ...]:
        """A text per option; the one that a model finds the most probable is the one it prefers.

        They follow the prompt and `before_answer` of a path.
        """

    @abstractmethod
    def begun(self, choice: str, choices: tuple[str, ...]) -> str:
        """How a path begins that chooses this option: the reason is written behind it.

        Of forms alone in which the answer comes first.
        """

    def writes_first(self, choices: tuple[str, ...]) -> bool:
        """Whether a model must write its path before its answer to the question is known."""
        return not choices

    def before_answer(self, path: str) -> str:
        """What of a path that can be read stands before its answer, for multiple choice."""
        del path
        return ""

    def has_reasons(self, path: str, choices: tuple[str, ...], answer: str) -> bool:
        """Whether a path with this answer says more than the answer."""
        return path.strip() != self.target(answer, choices, None).strip()

    def right(self, path: str, choices: tuple[str, ...], gold: str) -> bool:
        """Whether a path ends in the gold answer; one that cannot be read does not."""
        found = self.answer(path, choices)
        if found is None:
            return False
        return found == gold if choices else self.verifier.right(found, gold)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClozeForm(AnswerForm):
    """Options are not shown; see `lada_secure.data.prompts`."""

    name = "cloze"

    def prompt(self, question: str, choices: tuple[str, ...]) -> str:
        return prompt_of(question, choices)

    def target(self, answer: str, choices: tuple[str, ...], rationale: str | None) -> str:
        return rationale_of(answer, choices, rationale)

    def answer(self, path: str, choices: tuple[str, ...]) -> str | None:
        return answer_of(path, choices)

    def options(self, choices: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(option_text(choice) for choice in choices)

    def begun(self, choice: str, choices: tuple[str, ...]) -> str:
        del choices
        return option_text(choice)


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedForm(AnswerForm):
    """Options with letters; the path is the letter in a line of its own, and then the reason."""

    name = "listed"

    def prompt(self, question: str, choices: tuple[str, ...]) -> str:
        if not choices:
            return prompt_of(question, ())
        return (
            f"{question}\n{_list(choices)}"
            "Answer with the letter of the right option in a line, then give the reason.\n"
            f"{_ANSWER}"
        )

    def target(self, answer: str, choices: tuple[str, ...], rationale: str | None) -> str:
        if not choices:
            return rationale_of(answer, (), rationale)
        stated = f" {_letter_of(answer, choices)}"
        return stated if rationale is None else f"{stated}\n{rationale}"

    def answer(self, path: str, choices: tuple[str, ...]) -> str | None:
        if not choices:
            return answer_of(path, ())
        lines = path.strip().splitlines()
        return _option_named(lines[0], choices) if lines else None

    def options(self, choices: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(f" {letter(place)}" for place in range(len(choices)))

    def begun(self, choice: str, choices: tuple[str, ...]) -> str:
        return f" {_letter_of(choice, choices)}\n"

    def has_reasons(self, path: str, choices: tuple[str, ...], answer: str) -> bool:
        if not choices:
            return AnswerForm.has_reasons(self, path, choices, answer)
        return len(path.strip().splitlines()) > 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasonedForm(AnswerForm):
    """Options with letters; the path is the reason, and the answer in a last line of its own.

    The last line alone is read: what the reasoning says in a line like it decides nothing, and a
    path that goes on behind its answer, or was cut off before it, has none.
    """

    name = "reasoned"

    def prompt(self, question: str, choices: tuple[str, ...]) -> str:
        wanted = "the letter of the right option" if choices else "the answer alone"
        return (
            f"{question}\n{_list(choices)}"
            f'Reason step by step. End with a line that says "{_ANSWER}" and {wanted}.\n'
            "Reasoning:"
        )

    def target(self, answer: str, choices: tuple[str, ...], rationale: str | None) -> str:
        stated = _letter_of(answer, choices) if choices else _in_one_line(answer)
        line = f"\n{_ANSWER} {stated}"
        return line if rationale is None else f" {rationale}{line}"

    def answer(self, path: str, choices: tuple[str, ...]) -> str | None:
        lines = path.strip().splitlines()
        last = lines[-1].strip() if lines else ""
        if not last.startswith(_ANSWER):
            return None
        stated = last.removeprefix(_ANSWER).strip()
        return _option_named(stated, choices) if choices else stated or None

    def options(self, choices: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(f" {letter(place)}" for place in range(len(choices)))

    def begun(self, choice: str, choices: tuple[str, ...]) -> str:
        return self.target(choice, choices, None)

    def writes_first(self, choices: tuple[str, ...]) -> bool:
        del choices
        return True

    def before_answer(self, path: str) -> str:
        return _without_last_line(path) + _ANSWER

    def has_reasons(self, path: str, choices: tuple[str, ...], answer: str) -> bool:
        del choices, answer
        return bool(_without_last_line(path).strip())


CLOZE: Final = ClozeForm()
FORMS: Final[Mapping[FormName, type[AnswerForm]]] = {
    form.name: form for form in (ClozeForm, ListedForm, ReasonedForm)
}


def answer_form(name: FormName, verifier: Verifier = EXACT) -> AnswerForm:
    """The form of a name, with the rule by which open answers are right."""
    return FORMS[name](verifier=verifier)


def letter(place: int) -> str:
    """The letter of an option by its place: A to Z; AA and so on for more, which no file holds."""
    later, own = divmod(place, MAX_CHOICES)
    return (letter(later - 1) if later else "") + chr(ord("A") + own)


def _list(choices: tuple[str, ...]) -> str:
    """The options, one a line; a line break in an option becomes a space."""
    return "".join(
        f"{letter(place)}. {_in_one_line(choice)}\n" for place, choice in enumerate(choices)
    )


def _letter_of(answer: str, choices: tuple[str, ...]) -> str:
    """The letter of the right option; the text itself of an answer that is none."""
    if answer in choices:
        return letter(choices.index(answer))
    return _in_one_line(answer)


def _option_named(line: str, choices: tuple[str, ...]) -> str | None:
    """The option that a line names by its letter, alone or with the option's own text behind it."""
    found = _LETTER_LINE.fullmatch(line.strip())
    if found is None:
        return None
    named = {letter(place): choice for place, choice in enumerate(choices)}
    choice = named.get(found.group(1) or found.group(2))
    if choice is None:
        return None
    text, said = _in_one_line(choice).strip(), found.group(3).strip()
    return choice if said in ("", text, f"{text}.") else None


def _in_one_line(text: str) -> str:
    return " ".join(text.splitlines())


def _without_last_line(path: str) -> str:
    return "".join(path.rstrip().splitlines(keepends=True)[:-1])
