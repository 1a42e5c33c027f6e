"""SLM-to-LLM transfer, step 10: whom to ask about what, and whether the LLM has learned from it.

What the sites know comes in as the opened sum of their confidence excess over a public threshold.
The LLM's own answers stay with its owner.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

import numpy as np

from lada_secure.allocation.confidence_excess import samples_to_ask, scaled_confidence
from lada_secure.data.prompts import answer_of, prompt_of
from lada_secure.data.records import PoolSample
from lada_secure.method.holdout import HoldoutScore, holdout_agrees
from lada_secure.method.mechanisms import loss_settings
from lada_secure.method.plan import MethodPlan, split_pool, transfer_of
from lada_secure.models.confidence import Answers
from lada_secure.models.examples import RationaleExample
from lada_secure.models.tuning import RATE_SHARES, TuningSettings

W = TypeVar("W")
W_co = TypeVar("W_co", covariant=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision(Generic[W]):
    """What came of an update; weights: the new LLM's, None where it stays what it was."""

    received: int
    used: int
    before: HoldoutScore
    after: HoldoutScore
    weights: W | None


class TunableLlm(Protocol[W_co]):
    """An LLM as it was before the round; `tune` starts from there every time."""

    def answer(self, pool_indices: Sequence[int]) -> Answers:
        """What it answers before any update."""
        ...

    def tune(
        self,
        examples: Sequence[RationaleExample],
        replay: Sequence[RationaleExample],
        settings: TuningSettings,
    ) -> W_co:
        """Train it, and return what it has become."""
        ...

    def answer_tuned(self, pool_indices: Sequence[int]) -> Answers:
        """What it answers as `tune` left it."""
        ...


def samples_to_inquire(plan: MethodPlan, opened: Sequence[int], answers: Answers) -> list[int]:
    """Candidates on which the sites know more than the LLM.

    Args: opened: (n,) summed confidence excess. answers: of the LLM on the plan's candidates.
    """
    uplink, candidates = transfer_of(plan), split_pool(plan).candidates
    own = np.zeros(len(opened), dtype=np.float64)
    own[list(candidates)] = answers.confidence
    return samples_to_ask(opened, own, candidates, threshold=uplink.bar, budget=uplink.budget)


def improve(
    llm: TunableLlm[W],
    plan: MethodPlan,
    pool: Sequence[PoolSample],
    received: Mapping[str, Mapping[int, str]],
    written: Mapping[int, str],
    *,
    seed: int,
) -> Decision[W]:
    """Train the LLM on the sites' rationales, and decide by the hold-out.

    Where the hold-out does not agree, it is tried once more with smaller steps.

    Args: received: by site, by pool index. written: the LLM's own checked rationales by pool index,
        replayed so that they are not forgotten; those of held-out samples are left out.
    """
    split = split_pool(plan)
    before = _score(plan, llm.answer(split.holdout))
    count = sum(len(texts) for texts in received.values())
    examples = _examples(pool, received, split.candidates, llm.answer(split.candidates))
    if not examples:
        return Decision(received=count, used=0, before=before, after=before, weights=None)
    held_out = set(split.holdout)
    replay = [
        _example(pool[index], text, rejected=None)
        for index, text in sorted(written.items())
        if index not in held_out
    ]
    tuning = _tuning(plan, seed)
    after, weights = before, None
    for share in RATE_SHARES:
        gentle = replace(tuning, learning_rate=share * tuning.learning_rate)
        tuned = llm.tune(examples, replay, gentle)
        after = _score(plan, llm.answer_tuned(split.holdout))
        if holdout_agrees(before, after):
            weights = tuned
            break
    return Decision(received=count, used=len(examples), before=before, after=after, weights=weights)


def _score(plan: MethodPlan, answers: Answers) -> HoldoutScore:
    steps = scaled_confidence(answers.confidence, transfer_of(plan).integer_scale)
    return HoldoutScore(right=int(answers.right.sum()), confidence=int(steps.sum()))


def _examples(
    pool: Sequence[PoolSample],
    received: Mapping[str, Mapping[int, str]],
    candidates: Sequence[int],
    said: Answers,
) -> list[RationaleExample]:
    """Different rationales that reach the gold answer, each against what the LLM would say."""
    rejected = {
        index: text
        for index, text, right in zip(candidates, said.paths, said.right, strict=True)
        if text and not right
    }
    found: dict[tuple[int, str], RationaleExample] = {}
    for site in sorted(received):
        for index, text in received[site].items():
            sample = pool[index]
            if answer_of(text, sample.choices) == sample.answer:
                found[index, text] = _example(sample, text, rejected=rejected.get(index))
    return [found[key] for key in sorted(found)]


def _example(sample: PoolSample, text: str, *, rejected: str | None) -> RationaleExample:
    return RationaleExample(
        example_id=sample.sample_id,
        prompt=prompt_of(sample.question, sample.choices),
        path=text,
        rejected=rejected,
    )


def _tuning(plan: MethodPlan, seed: int) -> TuningSettings:
    uplink = transfer_of(plan)
    return TuningSettings(
        steps=uplink.steps,
        batch_size=uplink.batch_size,
        replay_batch_size=uplink.replay_batch_size,
        learning_rate=uplink.learning_rate,
        seed=seed,
        loss=loss_settings(uplink),
    )
