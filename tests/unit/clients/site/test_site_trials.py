"""Data valuations at a site: what they overrule, and what is paid for them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from guidance_doubles import BAD, GOOD, GUIDE, ledger, received
from trainer_doubles import example

from lada_clients.site.guidance import Guidance
from lada_protocol.plan import ValuationPlan
from lada_secure.data.records import Record
from lada_secure.models.adapters import adapter_weights
from lada_secure.privacy.ledger.entries import ReserveEntry
from lada_secure.privacy.release.private_records import PrivateRecords
from lada_secure.privacy.release.units import Unit


def with_trials(guidance: Guidance, *, least_gain: float = -1.0) -> Guidance:
    """The same with valuations of next to no noise, so that what they say is certain."""
    trials = ValuationPlan(noise_multiplier=0.1, gain_clip=0.5, least_gain=least_gain)
    # What contradicts these records leaves them as unlikely as they were: half as useful as can be.
    settings = GUIDE.model_copy(update={"trials": trials, "pool_steps": 30, "least_share": 0.75})
    return replace(
        guidance,
        settings=settings,
        plan=guidance.plan.model_copy(update={"guide": settings}),
    )


def agreeing_units() -> list[Unit]:
    """Records that say of other questions what the good paths say."""
    records = [
        Record(
            record_id=f"r{number}",
            unit=f"u{number}",
            question=f"question {number % 3}",
            choices=(),
            answer=str(number % 3),
            rationale="good",
        )
        for number in range(8)
    ]
    return [Unit(unit_id=one.unit, records=(one,)) for one in records]


def test_path_trials_overrule_a_guide_that_is_wrong(guidance: Guidance) -> None:
    guidance = with_trials(guidance)
    paths = guidance.take([*received(GOOD, cell=0), *received(BAD, cell=1)])
    examples = [
        replace(example(one.sample), prompt=f"question {one.sample}\n", path=one.path)
        for one in paths
    ]
    # The guide favours what contradicts the records.
    judged = [one.model_copy(update={"gain": 1.0 if one.sample in BAD else -1.0}) for one in paths]
    before = adapter_weights(guidance.model)
    book = ledger(guidance.plan)
    probabilities = np.full(6, 0.5)
    assert guidance.passing(judged, probabilities) == [3, 4, 5]

    def try_out() -> None:
        guidance.try_out(
            judged,
            examples,
            PrivateRecords(agreeing_units()),
            book=book,
            round_id=0,
        )

    try_out()

    assert guidance.passing(judged, probabilities) == [0, 1, 2]
    assert adapter_weights(guidance.model) == before
    (paid,) = [one for one in book.entries() if isinstance(one, ReserveEntry)]
    assert (paid.purpose, paid.round_id) == ("trials", 0)
    # Started again after a crash: the same release, and nothing is paid twice.
    found = guidance.memory.trials()
    try_out()
    assert guidance.memory.trials() == found
    assert len([one for one in book.entries() if isinstance(one, ReserveEntry)]) == 1


@pytest.mark.parametrize(("least_gain", "passed"), [(-1.0, [0, 1, 2]), (0.5, [])])
def test_paths_below_the_least_gain_are_dropped_even_where_there_are_no_better_ones(
    guidance: Guidance, least_gain: float, passed: list[int]
) -> None:
    guidance = with_trials(guidance, least_gain=least_gain)
    paths = guidance.take(received(BAD, cell=1))
    examples = [
        replace(example(one.sample), prompt=f"question {one.sample}\n", path=one.path)
        for one in paths
    ]
    guidance.try_out(
        paths, examples, PrivateRecords(agreeing_units()), book=ledger(guidance.plan), round_id=0
    )
    (tried,) = guidance.memory.trials()
    assert tried.gain < 0.5
    assert guidance.passing(paths, np.full(3, 0.5)) == passed


@pytest.mark.parametrize("why", ["no trials in the plan", "too few paths"])
def test_where_nothing_is_tried_nothing_is_paid(guidance: Guidance, why: str) -> None:
    few = why == "too few paths"
    guidance = with_trials(guidance) if few else guidance
    book = ledger(guidance.plan)
    paths = dict(list(GOOD.items())[: 2 if few else 3])
    guidance.try_out(
        guidance.take(received(paths, cell=0)),
        [example(place) for place in paths],
        PrivateRecords(agreeing_units()),
        book=book,
        round_id=0,
    )
    assert guidance.memory.trials() == ()
    assert not [one for one in book.entries() if isinstance(one, ReserveEntry)]
