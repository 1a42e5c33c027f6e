"""Which rationales agree with the records: the DP reference model, and data valuation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from method_doubles import BAD, GOOD, GUIDE, known, ledger, plan, site_context, trained_on_good

from lada_secure.allocation.gap import SlmKnowledge
from lada_secure.data.records import Record
from lada_secure.method import judges
from lada_secure.method.judges import agreeing, drawn_beside, judge, release_valuation
from lada_secure.method.plan import MethodPlan, ReferenceModelPlan, ValuationPlan
from lada_secure.method.site_context import SiteContext
from lada_secure.method.site_state import KnownRationale, SiteState
from lada_secure.method.training import pool_tuning, valuation_tuning
from lada_secure.models.adapters import AdapterWeights, adapter_weights
from lada_secure.privacy.ledger.entries import ReserveEntry
from lada_secure.privacy.release.units import Unit

ALL = (*known(GOOD, cell=0), *known(BAD, cell=1))


def study(guide: ReferenceModelPlan = GUIDE) -> MethodPlan:
    return plan().model_copy(update={"guide": guide})


def with_valuation(*, least_gain: float = -1.0) -> ReferenceModelPlan:
    """Valuation of next to no noise, so that what it says is certain."""
    trials = ValuationPlan(noise_multiplier=0.1, gain_clip=0.5, least_gain=least_gain)
    # What contradicts these records leaves them as unlikely as they were: half as useful as can be.
    return GUIDE.model_copy(update={"trials": trials, "pool_steps": 30, "least_share": 0.75})


def agreeing_units() -> list[Unit]:
    """Records that say of other questions what the good rationales say."""
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


def paid(site: SiteContext) -> list[ReserveEntry]:
    return [entry for entry in site.book.entries() if isinstance(entry, ReserveEntry)]


def test_only_what_the_dp_reference_model_favours_agrees() -> None:
    site = site_context(study())
    drawn = drawn_beside(site, GUIDE, ALL)
    assert all(1 <= len(rationale.drawn) <= GUIDE.own_paths for rationale in drawn)
    found = judge(site, drawn, trained_on_good(site))
    gains = [rationale.gain or 0.0 for rationale in found]
    assert min(gains[:3]) > max(gains[3:])
    assert (
        agreeing(site.plan, GUIDE, SiteState(rationales=found)).tolist() == [True] * 3 + [False] * 3
    )


def test_something_is_drawn_once_beside_each_rationale(monkeypatch: pytest.MonkeyPatch) -> None:
    site = site_context(study())
    asked: list[int] = []
    draw = judges.sampled_responses

    def counted(lm: object, prompts: list[str], **options: object) -> object:
        asked.append(len(prompts))
        return draw(lm, prompts, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(judges, "sampled_responses", counted)
    first = judge(site, drawn_beside(site, GUIDE, known(GOOD, cell=0)), site.reference)
    again = drawn_beside(site, GUIDE, (*first, *known(BAD, cell=1)))
    assert again[:3] == first
    assert asked == [3, 3]
    assert drawn_beside(site, GUIDE, judge(site, again, site.reference))
    assert asked == [3, 3]


def test_without_any_rationale_nothing_is_judged() -> None:
    site = site_context(study())
    assert drawn_beside(site, GUIDE, ()) == ()
    assert judge(site, (), site.reference) == ()
    assert agreeing(site.plan, GUIDE, SiteState()).tolist() == []


def test_without_anything_to_compare_with_there_is_no_gain_rather_than_a_guess() -> None:
    site = site_context(study())
    alone = KnownRationale(pool_index=0, cell=0, text="good 0", p=0.5, gain=1.0)
    assert judge(site, [alone], site.reference) == (replace(alone, gain=0.0),)


def test_valuation_overrules_a_dp_reference_model_that_is_wrong() -> None:
    guide = with_valuation()
    site = site_context(study(guide), agreeing_units())
    # It favours what contradicts the records.
    wrong = tuple(
        replace(rationale, gain=1.0 if rationale.pool_index in BAD else -1.0) for rationale in ALL
    )
    examples = [site.example(rationale) for rationale in wrong]
    before = adapter_weights(site.lm)
    state = SiteState(rationales=wrong)
    assert agreeing(site.plan, guide, state).tolist() == [False] * 3 + [True] * 3

    valued = release_valuation(site, guide, wrong, examples, 0)

    after = replace(state, valuations=tuple(valued))
    assert agreeing(site.plan, guide, after).tolist() == [True] * 3 + [False] * 3
    assert adapter_weights(site.lm) == before
    (entry,) = paid(site)
    assert (entry.purpose, entry.round_id) == ("trials", 0)
    # Started again after a crash: the same release, and nothing is paid twice.
    assert release_valuation(site, guide, wrong, examples, 0) == valued
    assert len(paid(site)) == 1


@pytest.mark.parametrize(("least_gain", "passed"), [(-1.0, True), (0.5, False)])
def test_what_is_below_the_least_gain_is_dropped_even_where_there_is_nothing_better(
    least_gain: float, passed: bool
) -> None:
    guide = with_valuation(least_gain=least_gain)
    site = site_context(study(guide), agreeing_units())
    bad = known(BAD, cell=1)
    valued = release_valuation(site, guide, bad, [site.example(one) for one in bad], 0)
    assert valued[0].gain < 0.5
    state = SiteState(rationales=bad, valuations=tuple(valued))
    assert agreeing(site.plan, guide, state).tolist() == [passed] * 3


@pytest.mark.parametrize("why", ["no valuation in the plan", "too few", "a strategy without"])
def test_where_nothing_is_valued_nothing_is_paid(why: str) -> None:
    guide = GUIDE if why == "no valuation in the plan" else with_valuation()
    base = study(guide)
    if why == "a strategy without":
        domain = base.allocation.model_copy(update={"strategy": "domain"})
        base = base.model_copy(update={"allocation": domain})
    site = site_context(base, agreeing_units(), book=ledger(base))
    good = known(dict(list(GOOD.items())[: 2 if why == "too few" else 3]), cell=0)
    examples = [site.example(rationale) for rationale in good]
    assert release_valuation(site, guide, good, examples, 0) == []
    assert paid(site) == []


def test_valuation_students_repeat_what_the_sites_own_repeats(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    guide = with_valuation().model_copy(update={"replay_batch_size": 2})
    site = site_context(study(guide), agreeing_units())
    count = len(site.pool)
    site.untaught = SlmKnowledge(
        right=np.ones(count, dtype=np.bool_), confidence=np.ones(count), paths=("good",) * count
    )
    seen: list[int] = []
    taught = judges.valuation_student

    def watched(lm: Any, paths: Any, replay: Any, **settings: Any) -> AdapterWeights:
        seen.append(len(replay))
        assert settings["tuning"].replay_batch_size == 2
        return taught(lm, paths, replay, **settings)

    monkeypatch.setattr(judges, "valuation_student", watched)
    examples = [site.example(rationale) for rationale in ALL]
    assert release_valuation(site, guide, ALL, examples, 0)
    assert seen == [count, count]


def test_a_valuation_student_sees_no_rationale_more_than_16_times() -> None:
    guide = GUIDE.model_copy(update={"pool_steps": 60})
    shape = study(guide).distillation.model_copy(update={"pool_batch_size": 16})
    wide = study(guide).model_copy(update={"distillation": shape})
    tuning = valuation_tuning(wide, guide, round_id=0)
    # The site's own model takes every step that the plan has, however few rationales there are.
    assert [tuning.steps_for(count) for count in (3, 16, 60, 500)] == [3, 16, 60, 60]
    own = pool_tuning(wide, guide, round_id=0, steps=60, loss=tuning.loss)
    assert [own.steps_for(count) for count in (3, 500)] == [60, 60]
