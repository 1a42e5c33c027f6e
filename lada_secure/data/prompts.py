"""The cloze form: how a question becomes the text a model reads, and how an answer is read back.

The options of a multiple-choice question are not listed, the path names the answer and then the
reason, and a model chooses the option whose text it finds the most probable. (Small models cannot
tie a listed option to its letter: SmolLM2-135M stays at chance.) An open question is followed by
its reasoning and, on a last line of its own, the answer. `lada_secure.data.forms` has all forms.

All functions here are total: they give a text for whatever a record holds. What makes no sensible
question is refused earlier, by file and line (`lada_secure.data.record_faults`). A record that got
past that must not stop a release: stopping would tell that it is there.
"""

from __future__ import annotations

MAX_CHOICES = 26


def prompt_of(question: str, choices: tuple[str, ...]) -> str:
    """The text that a model reads before it writes its path.

    Args: question: complete without its options. choices: empty for open questions.
    """
    return f"{question}\nAnswer:" if choices else f"{question}\n"


def rationale_of(answer: str, choices: tuple[str, ...], rationale: str | None) -> str:
    """The target text that follows `prompt_of`: the answer with its reasoning.

    Args: answer: one of `choices`, or the answer of an open question; line breaks in that one
        become spaces, for the answer is the path's last line. rationale: None where only the answer
        is known.
    """
    if not choices:
        stated = " ".join(answer.splitlines())
        return stated if rationale is None else f"{rationale}\n{stated}"
    stated = option_text(answer)
    return stated if rationale is None else f"{stated} {rationale}"


def option_text(choice: str) -> str:
    """How every path starts that chooses this option; scored to find the preferred option.

    The full stop belongs to it: an option may be the beginning of another one.
    """
    return f" {choice}."


def answer_of(path_text: str, choices: tuple[str, ...]) -> str | None:
    """Read the answer out of a path that a model wrote.

    Returns: one of `choices`, or the last line of an open question's path; None where no option,
        or nothing at all, can be read.
    """
    text = path_text.strip()
    if not choices:
        lines = text.splitlines()
        return lines[-1].strip() if lines else None
    # The longest first: "gout. chronic" is an option that starts with another one, "gout".
    for choice in sorted(choices, key=len, reverse=True):
        stated = option_text(choice).strip()
        if text == choice or text.startswith(stated):
            return choice
    return None
