"""The LLM transfer in the simulation: what students know better, summed, teaches the LLM.

The shipped parts in the shipped order: confidence excesses over a public threshold, their sum
(plain here, opened collectively in a study), samples asked for, paths checked against the gold
answer, tuning on them against what the LLM would say, and an update only where a public hold-out
agrees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lada_lab.arms.coordinator import Coordinator
from lada_lab.arms.party import Party
from lada_lab.arms.study import StudySettings, loss_settings
from lada_secure.allocation.confidence_excess import (
    excess_over_threshold,
    samples_to_ask,
    scaled_confidence,
)
from lada_secure.data.prompts import prompt_of
from lada_secure.models.adapters import adapter_weights, load_adapters
from lada_secure.models.confidence import Answers, answer_pool
from lada_secure.models.examples import RationaleExample
from lada_secure.models.loading import LanguageModel
from lada_secure.models.rationales import generate_rationales
from lada_secure.models.tuning import (
    RATE_SHARES,
    TuningSettings,
    tune_on_rationales,
)

_SCALE = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferReport:
    """One round's uplink: samples asked for, paths used, right on the hold-out before and after."""

    asked: int
    used: int
    before: int
    after: int
    accepted: bool

    def to_json(self) -> dict[str, int | bool]:
        """For the benchmark's details."""
        return {name: getattr(self, name) for name in self.__slots__}


def split(pool: int, *, holdout: float = 0.15, candidates: float = 0.6) -> tuple[list[int], ...]:
    """Pool indices of the hold-out and of the candidates, drawn once and for all."""
    order = [int(one) for one in np.random.default_rng(71).permutation(pool)]
    first, last = round(holdout * pool), round((holdout + candidates) * pool)
    return sorted(order[:first]), sorted(order[first:last])


def uplink(
    coordinator: Coordinator,
    parties: Sequence[Party],
    settings: StudySettings,
    *,
    seed: int,
) -> TransferReport:
    """One round's LLM transfer; the LLM is the better one afterwards, or unchanged."""
    pool = coordinator.data.pool
    holdout, candidates = split(len(pool))
    own = _answers(coordinator.llm, coordinator, candidates, settings)
    total = np.zeros(len(pool), dtype=np.int64)
    for party in parties:
        load_adapters(party.lm, party.student)
        total += excess_over_threshold(
            _answers(party.lm, coordinator, candidates, settings).confidence,
            candidates,
            pool_size=len(pool),
            threshold=settings.uplink_bar,
            clip=1.0 - settings.uplink_bar,
            scale=_SCALE,
        )
    confidence = np.zeros(len(pool), dtype=np.float64)
    confidence[candidates] = own.confidence
    asked = samples_to_ask(
        total,
        confidence,
        candidates,
        threshold=settings.uplink_bar,
        budget=settings.uplink_budget,
    )
    examples = _examples(coordinator, parties, asked, dict(zip(candidates, own.paths, strict=True)))
    before = _score(coordinator, holdout, settings)
    if not examples:
        return TransferReport(
            asked=len(asked), used=0, before=before[0], after=before[0], accepted=False
        )
    kept = adapter_weights(coordinator.llm)
    replay = [
        RationaleExample(
            example_id=pool[place].sample_id,
            prompt=prompt_of(pool[place].question, ()),
            path=path,
            rejected=None,
        )
        for place, path, right in zip(candidates, own.paths, own.right, strict=True)
        if right
    ]
    for share in RATE_SHARES:
        load_adapters(coordinator.llm, kept)
        tune_on_rationales(
            coordinator.llm,
            examples,
            replay,
            TuningSettings(
                steps=settings.uplink_steps,
                batch_size=16,
                replay_batch_size=48,
                learning_rate=share * settings.uplink_learning_rate,
                max_epochs=50,
                seed=seed,
                loss=loss_settings(settings, contrast=True),
            ),
        )
        after = _score(coordinator, holdout, settings)
        accepted = after[0] >= before[0] and after[1] > before[1]
        if accepted:
            coordinator.forget()
            break
    else:
        load_adapters(coordinator.llm, kept)
    return TransferReport(
        asked=len(asked),
        used=len(examples),
        before=before[0],
        after=after[0],
        accepted=accepted,
    )


def _answers(
    lm: LanguageModel, coordinator: Coordinator, places: Sequence[int], settings: StudySettings
) -> Answers:
    return answer_pool(
        lm,
        [coordinator.data.pool[place] for place in places],
        batch_size=settings.batch_size,
        max_new_tokens=settings.max_new_tokens,
    )


def _score(
    coordinator: Coordinator, holdout: Sequence[int], settings: StudySettings
) -> tuple[int, int]:
    found = _answers(coordinator.llm, coordinator, holdout, settings)
    return int(found.right.sum()), int(scaled_confidence(found.confidence, _SCALE).sum())


def _examples(
    coordinator: Coordinator,
    parties: Sequence[Party],
    asked: Sequence[int],
    said: dict[int, str],
) -> list[RationaleExample]:
    """Different paths of students that reach the gold answer, against what the LLM would say."""
    pool = coordinator.data.pool
    places = {pool[place].sample_id: place for place in asked}
    found: dict[tuple[int, str], RationaleExample] = {}
    for party in parties:
        load_adapters(party.lm, party.student)
        written = generate_rationales(
            party.lm,
            [pool[place] for place in asked],
            max_new_tokens=party.settings.max_new_tokens,
            attempts=1,
            batch_size=party.settings.batch_size,
        )
        for one in written.paths:
            place = places[one.sample_id]
            own = said.get(place)
            found[place, one.path] = RationaleExample(
                example_id=one.sample_id,
                prompt=prompt_of(pool[place].question, ()),
                path=one.path,
                rejected=own if own and own != one.path else None,
            )
    return [found[key] for key in sorted(found)]
