"""`lada site ask`: one question to the model as it was before the study and as it is after."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.table import Table

from lada_clients.site.results.candidates import Others, candidates, check_others
from lada_clients.site.results.study import SiteStudy
from lada_protocol.plan import StudyPlan
from lada_secure.data.prompts import MAX_CHOICES
from lada_secure.data.records import PoolSample
from lada_secure.errors import ParameterError
from lada_secure.method.training import written_tokens
from lada_secure.models.evaluation import generate_texts, greedy_rationales, option_probabilities
from lada_secure.models.text_model import ModelTexts, TextModel
from lada_secure.screen_text import printable

MAX_QUESTION_CHARACTERS = 100_000
# Where nobody says how many, and a study's answers need no more.
_NEW_TOKENS = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What one model says. probabilities: of each choice, empty for an open question."""

    name: str
    path: str
    answer: str | None
    probabilities: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "model": self.name,
            "path": self.path,
            "answer": self.answer,
            "probabilities": self.probabilities,
        }


def checked_question(question: str, choices: tuple[str, ...]) -> PoolSample:
    """A question as the study's records have theirs.

    Raises: ParameterError: empty, too long, or choices that make no question.
    """
    if not question.strip():
        raise ParameterError("question: expected a text, got nothing; write it behind the command")
    if len(question) > MAX_QUESTION_CHARACTERS:
        raise ParameterError(
            f"question: {len(question)} characters, at most {MAX_QUESTION_CHARACTERS}"
        )
    if choices and not 2 <= len(choices) <= MAX_CHOICES:
        raise ParameterError(f"--choice: expected 2 to {MAX_CHOICES} of them, got {len(choices)}")
    if len(set(choices)) < len(choices) or not all(one.strip() for one in choices):
        raise ParameterError("--choice: expected different texts, none of them empty")
    return PoolSample(sample_id="asked", question=question, choices=choices, answer="")


def asked_tokens(plan: StudyPlan, lm: ModelTexts) -> int:
    """How much a model writes where nobody says how much; at most half of what it takes."""
    return min(max(written_tokens(plan), _NEW_TOKENS), lm.max_tokens // 2)


def ask(
    study: SiteStudy,
    sample: PoolSample,
    *,
    round_id: int | None = None,
    others: Others | None = None,
    max_new_tokens: int | None = None,
) -> list[Reply]:
    """Put a question to the model before the study, after a round, and to others.

    Raises: ParameterError: a model cannot be loaded, or takes no such text.
    """
    chosen, beside = study.round(round_id), others or Others()
    check_others(study, beside)
    replies = []
    for one in candidates(study, chosen, beside):
        most = max_new_tokens or asked_tokens(study.plan, one.lm)
        _check_fits(one.lm, sample, most)
        replies.append(_reply(one.name, one.lm, sample, most))
    return replies


def _check_fits(lm: TextModel, sample: PoolSample, max_new_tokens: int) -> None:
    """A question that loses its start would be another one."""
    if max_new_tokens >= lm.room:
        raise ParameterError(
            f"--max-new-tokens: expected less than {lm.room}, what the model takes in all; got "
            f"{max_new_tokens}"
        )
    prompt = lm.form.prompt(sample.question, sample.choices)
    whole = lm.encode_prompt(prompt, begun="", room=lm.max_tokens)
    fitted = lm.encode_prompt(prompt, begun="", room=lm.max_tokens - max_new_tokens)
    if len(whole) >= lm.max_tokens or len(fitted) < len(whole):
        raise ParameterError(
            f"question: {len(whole)} tokens or more, and the model takes {lm.max_tokens} with "
            f"{max_new_tokens} new ones; shorten it, or lower --max-new-tokens"
        )


def _reply(name: str, lm: TextModel, sample: PoolSample, max_new_tokens: int) -> Reply:
    form, choices = lm.form, sample.choices
    prompt = form.prompt(sample.question, choices)
    if form.writes_first(choices):
        (path,) = greedy_rationales(lm, [prompt], batch_size=1, max_new_tokens=max_new_tokens)
        answer = form.answer(path, choices)
        begun = form.before_answer(path) if choices and answer is not None else None
    else:
        path, answer, begun = "", None, ""
    shares: dict[str, float] = {}
    if choices and begun is not None:
        (found,) = option_probabilities(lm, [sample], batch_size=1, begun=[begun])
        shares = dict(zip(choices, map(float, found), strict=True))
    if choices and not form.writes_first(choices):
        answer = max(choices, key=lambda one: shares[one])
        start = form.begun(answer, choices)
        (rest,) = generate_texts(
            lm,
            [prompt],
            batch_size=1,
            max_new_tokens=max_new_tokens,
            temperature=0.0,
            seed=0,
            begun=[start],
        )
        path = start + rest
    return Reply(name=name, path=path.strip(), answer=answer, probabilities=shares)


def table_of(replies: list[Reply]) -> Table:
    """Side by side, for people."""
    table = Table(show_lines=True)
    table.add_column("")
    for one in replies:
        table.add_column(one.name)
    table.add_row(
        "answer", *(printable(one.answer or "(none can be read)", lines=True) for one in replies)
    )
    for choice in replies[0].probabilities or replies[-1].probabilities:
        shares = (one.probabilities.get(choice) for one in replies)
        table.add_row(
            printable(choice, lines=True), *("-" if one is None else f"{one:.1%}" for one in shares)
        )
    table.add_row("what it writes", *(printable(one.path, lines=True) for one in replies))
    return table
