"""Rationales that a model writes for public pool samples, checked against the gold answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lada_secure.data.prompts import answer_of, option_text, prompt_of
from lada_secure.data.records import PoolSample
from lada_secure.errors import ParameterError
from lada_secure.models.evaluation import choose, generate_texts
from lada_secure.models.loading import LanguageModel


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratedRationale:
    """A path that ended in the right answer; `attempt` counts from 1."""

    sample_id: str
    path: str
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratedRationales:
    """Paths for the samples that were solved, in the samples' order, and what was dropped.

    `dropped`: ids of the samples that no attempt solved. `wrong`: attempts that ended in another
    answer. `unreadable`: attempts without a readable answer.
    """

    paths: tuple[GeneratedRationale, ...]
    dropped: tuple[str, ...]
    wrong: int
    unreadable: int


def generate_rationales(
    lm: LanguageModel,
    samples: Sequence[PoolSample],
    *,
    max_new_tokens: int,
    attempts: int,
    batch_size: int = 16,
    temperature: float = 0.7,
    seed: int = 0,
) -> GeneratedRationales:
    """Have the model write a path for each sample and keep those that reach the gold answer.

    Open questions: the first attempt is greedy; samples that it missed are drawn again at
    `temperature`. Multiple choice: the model chooses the option that it finds most probable and,
    where that is the gold one, writes its reason behind it; choosing again would change nothing,
    so a wrong choice is dropped at once. A path whose reason is wrong but whose answer is right
    passes: only the answer can be checked.

    Args: max_new_tokens: >= 1; a path cut off there is kept if its answer can be read.
        attempts: >= 1. seed: of the sampled attempts.
    Raises: ParameterError: attempts below 1, or two samples with one id.
    """
    if attempts < 1:
        raise ParameterError(f"attempts: expected 1 or more, got {attempts}")
    if len({sample.sample_id for sample in samples}) != len(samples):
        raise ParameterError("a sample_id appears twice among the samples to solve")
    found: dict[str, GeneratedRationale] = {}
    wrong = unreadable = 0
    for attempt in range(1, attempts + 1):
        left = [
            sample
            for sample in samples
            if sample.sample_id not in found and (attempt == 1 or not sample.choices)
        ]
        if not left:
            break
        texts = _written(
            lm,
            left,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            temperature=0.0 if attempt == 1 else temperature,
            seed=seed + attempt,
        )
        for sample, text in zip(left, texts, strict=True):
            answer = answer_of(text, sample.choices)
            if answer is None:
                unreadable += 1
            elif answer != sample.answer:
                wrong += 1
            else:
                found[sample.sample_id] = GeneratedRationale(
                    sample_id=sample.sample_id, path=text, attempt=attempt
                )
    return GeneratedRationales(
        paths=tuple(found[one.sample_id] for one in samples if one.sample_id in found),
        dropped=tuple(one.sample_id for one in samples if one.sample_id not in found),
        wrong=wrong,
        unreadable=unreadable,
    )


def _written(
    lm: LanguageModel,
    samples: Sequence[PoolSample],
    *,
    batch_size: int,
    max_new_tokens: int,
    temperature: float,
    seed: int,
) -> list[str]:
    """One text per sample: the chosen option where there are options, and the reason."""
    stated = [""] * len(samples)
    offered = [number for number, sample in enumerate(samples) if sample.choices]
    if offered:
        picks = choose(lm, [samples[number] for number in offered], batch_size=batch_size)
        for number, pick in zip(offered, picks, strict=True):
            stated[number] = option_text(samples[number].choices[int(pick)])
    # A wrong choice is dropped by its answer; a reason for it would be wasted time.
    going_on = [
        number
        for number, sample in enumerate(samples)
        if not sample.choices or stated[number] == option_text(sample.answer)
    ]
    reasons = generate_texts(
        lm,
        [
            prompt_of(samples[number].question, samples[number].choices) + stated[number]
            for number in going_on
        ],
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
    )
    texts = list(stated)
    for number, reason in zip(going_on, reasons, strict=True):
        texts[number] = stated[number] + reason
    return texts
