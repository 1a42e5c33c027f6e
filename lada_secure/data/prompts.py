"""How a question becomes the text a model reads, and how an answer is read out of its text.

Two forms. A multiple-choice question lists its options by letter; the path names the letter first
and the reason after it, so that one forward pass scores the answer. An open question is followed by
its reasoning and, on a last line of its own, the answer.
"""

from __future__ import annotations

import re
import string

from lada_secure.errors import ParameterError

LETTERS = string.ascii_uppercase
_CHOSEN = re.compile(r"\s*([A-Z])\)(.*)", re.DOTALL)


def _check_choices(choices: tuple[str, ...]) -> None:
    if len(choices) == 1 or len(choices) > len(LETTERS):
        raise ParameterError(
            f"a question needs 2 to {len(LETTERS)} choices, or none at all where it is open; "
            f"got {len(choices)}"
        )


def prompt_of(question: str, choices: tuple[str, ...]) -> str:
    """The text that a model reads before it writes its path.

    Args: question: without options. choices: the options in their order; empty for open questions.
    Raises: ParameterError: one choice only, or more than there are letters.
    """
    _check_choices(choices)
    if not choices:
        return f"{question}\n"
    options = "\n".join(
        f"{letter}) {choice}" for letter, choice in zip(LETTERS, choices, strict=False)
    )
    return f"{question}\n{options}\nAnswer:"


def path_of(answer: str, choices: tuple[str, ...], rationale: str | None) -> str:
    """The target text that follows `prompt_of`: the answer with its reasoning.

    Args: answer: one of `choices`, or the answer of an open question in one line. rationale: None
        where only the answer is known.
    Raises: ParameterError: the answer is not among the choices, or has a line break in an open one.
    """
    _check_choices(choices)
    if not choices:
        if "\n" in answer:
            raise ParameterError("the answer of an open question must stand in one line")
        return answer if rationale is None else f"{rationale}\n{answer}"
    if answer not in choices:
        raise ParameterError("the answer is not among the choices; it must be one of them")
    chosen = f"{letter_prefix(choices.index(answer))}) {answer}"
    return chosen if rationale is None else f"{chosen}. {rationale}"


def letter_prefix(position: int) -> str:
    """How a path starts that chooses the option at `position` (0-based), up to the letter."""
    return f" {LETTERS[position]}"


def answer_of(path_text: str, choices: tuple[str, ...]) -> str | None:
    """Read the answer out of a path that a model wrote.

    A path that names a letter and then spells out another option contradicts itself and counts as
    unreadable, as does a letter beyond the options.

    Returns: one of `choices`, or the last line of an open question's path; None if unreadable.
    """
    _check_choices(choices)
    if not choices:
        lines = path_text.strip().splitlines()
        return lines[-1].strip() if lines else None
    found = _CHOSEN.match(path_text)
    if found is None:
        return None
    position = LETTERS.index(found.group(1))
    if position >= len(choices):
        return None
    text = found.group(2).strip()
    named = [choice for choice in choices if text == choice or text.startswith(f"{choice}.")]
    # Options may begin alike ("gout. chronic" and "gout"), hence membership, not equality.
    if named and choices[position] not in named:
        return None
    return choices[position]
