"""When a site does without the pool: what it may know, when it knows it, and what it keeps."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
from form_models import form_model, taught_samples
from method_doubles import plan, received, site_context

from lada_secure.allocation.data_valuation import ClusterValuation
from lada_secure.allocation.statistics import NoisedStatistics
from lada_secure.data.records import PoolSample, Record
from lada_secure.method import site_knowledge
from lada_secure.method.mechanisms import statistics_parameters
from lada_secure.method.plan import MethodPlan, ValuationPlan
from lada_secure.method.site_allocation import choose_cells
from lada_secure.method.site_context import SiteContext
from lada_secure.method.site_fallback import fallback_after_writing
from lada_secure.method.site_knowledge import untaught_knowledge
from lada_secure.method.site_round import pick, site_statistics
from lada_secure.method.site_state import SiteState
from lada_secure.method.site_training import train
from lada_secure.models.adapters import AdapterSettings, adapter_weights, attach_adapters
from lada_secure.models.confidence import answer_pool
from lada_secure.privacy.release.units import Unit

# All that the model was taught, under new names: it knows every one.
KNOWN = taught_samples()
# Questions with options: a model chooses, and only its rationale shows whether it was right.
CHOICES = tuple(
    PoolSample(sample_id=f"c{at}", question=f"which {at}", choices=("cow", "hen"), answer="cow")
    for at in range(12)
)


def study(pool: tuple[PoolSample, ...], **allocation: object) -> MethodPlan:
    base = plan()
    return base.model_copy(
        update={
            "guide": None,
            "pool_size": len(pool),
            "paths": base.paths.model_copy(update={"max_new_tokens": 20, "budget": 12}),
            "training": base.training.model_copy(
                update={"noise_multiplier": 4.0, "sampling_probability": 0.5, "steps_per_round": 1}
            ),
            "allocation": base.allocation.model_copy(
                update={
                    "strategy": "domain",
                    "quota": 8,
                    "threshold": 0.0,
                    "screen_low": 0.0,
                    "screen_high": 1.0,
                    **allocation,
                }
            ),
        }
    )


def site_of(pool: tuple[PoolSample, ...], **allocation: object) -> SiteContext:
    taught = form_model("cloze")
    lm = attach_adapters(
        replace(taught, model=copy.deepcopy(taught.model)), AdapterSettings(rank=2)
    )
    record = Record(
        record_id="r", unit="u", question=KNOWN[0].question, choices=(), answer="9", rationale=None
    )
    units = [Unit(unit_id="u", records=(record,))]
    return site_context(study(pool, **allocation), units, lm=lm, pool=pool)  # type: ignore[arg-type]


def noised(site: SiteContext, mass: int = 500) -> NoisedStatistics:
    parameters = statistics_parameters(site.plan)
    vector = np.full(parameters.length, mass * parameters.scale, dtype=np.int64)
    return NoisedStatistics(vector=vector, parameters=parameters)


def asked(site: SiteContext, score: float, state: SiteState | None = None) -> SiteState:
    scores = np.full(len(site.pool), score)
    return pick(site, state or SiteState(), 0, noised(site), scores)


def cause(state: SiteState) -> str | None:
    found = state.fallbacks.get(0)
    return None if found is None else found.cause


def test_what_the_slm_knows_is_not_asked_for_and_the_rest_of_the_pool_is() -> None:
    state = asked(site_of(KNOWN), 0.5)
    assert (cause(state), state.picks) == ("known_already", {0: ()})
    unknown = tuple(
        replace(one, answer=next((other for other in one.choices if other != one.answer), "?"))
        for one in KNOWN
    )
    state = asked(site_of(unknown), 0.5)
    assert cause(state) is None
    assert state.picks[0]
    state = asked(site_of(KNOWN, fallback="off"), 0.5)
    assert cause(state) is None
    assert state.picks[0]


def test_what_a_student_was_taught_says_nothing_against_the_pool() -> None:
    site = site_of(KNOWN)
    # A student that has forgotten everything, of a model that knew it; and the other way round.
    at_first = adapter_weights(site.lm)
    for parameter in site.lm.model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(0.0, 1.0)
    forgetful = adapter_weights(site.lm)
    assert cause(asked(site, 0.5, SiteState(student=forgetful))) == "known_already"
    learned = replace(site, reference=forgetful, untaught=None)
    assert cause(asked(learned, 0.5, SiteState(student=at_first))) is None


def test_the_pool_is_answered_once_and_whatever_the_scores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[int] = []

    def counted(lm, samples, **settings):  # type: ignore[no-untyped-def]
        calls.append(len(samples))
        return answer_pool(lm, samples, **settings)

    monkeypatch.setattr(site_knowledge, "answer_pool", counted)
    for score in (0.0, 0.5):
        site = site_of(KNOWN)
        for round_id in range(2):
            pick(site, SiteState(), round_id, noised(site), np.full(len(KNOWN), score))
    assert calls == [len(KNOWN)] * 2
    asked(site_of(KNOWN, fallback="off"), 0.5)
    assert len(calls) == 2


def test_an_llm_that_chooses_is_found_wrong_by_what_it_did_not_write() -> None:
    site = site_of(CHOICES)
    picks = range(8)

    def found(came: range, demanded: int | None) -> str | None:
        fallback = fallback_after_writing(site, picks, came, demanded)
        return None if fallback is None else fallback.cause

    # Where the SLM is right on none there is none that it knows alone.
    site.untaught = replace(untaught_knowledge(site), right=np.zeros(12, dtype=np.bool_))
    assert found(range(1), 8) == "llm_mostly_wrong"
    assert found(range(6), 8) is None
    # Beyond its budget the LLM has not tried, and an unknown demand says nothing.
    assert found(range(1), 13) is None
    assert found(range(1), None) is None
    site.untaught = replace(untaught_knowledge(site), right=np.ones(12, dtype=np.bool_))
    assert found(range(3, 6), 8) == "llm_weaker"
    assert found(range(8), 8) is None


def test_open_questions_are_told_by_their_scores_and_not_again_by_what_came() -> None:
    questions = tuple(replace(one, choices=()) for one in CHOICES)
    assert fallback_after_writing(site_of(questions), range(8), (), 8) is None


def test_what_came_late_is_kept_and_not_learned_from() -> None:
    site = site_of(CHOICES)
    site.untaught = replace(untaught_knowledge(site), right=np.zeros(12, dtype=np.bool_))
    state = SiteState(picks={0: tuple(range(8))})
    came = received({0: "cow"}, cell=0)
    statistics = site_statistics(site, state, 0).value
    done = train(site, state, 0, statistics, came, demanded=8)
    assert done.fallback is not None
    assert done.fallback.cause == "llm_mostly_wrong"
    assert "right on 1 of 8 pool samples (12%)" in done.fallback.because
    assert done.state.fallbacks == {0: done.fallback}
    assert done.trained_on == ()
    assert [one.pool_index for one in done.state.rationales] == [0]
    # The next round may be another matter: nothing holds against what is known already.
    later = train(
        site,
        done.state.with_picks(1, range(1, 9)),
        1,
        site_statistics(site, done.state, 1).value,
        received(dict.fromkeys(range(1, 9), "cow"), cell=0),
        demanded=8,
    )
    assert later.fallback is None
    assert later.trained_on == tuple(range(9))


def test_few_records_let_data_valuation_alone_part_the_topics() -> None:
    base = plan()
    assert base.guide is not None
    trials = ValuationPlan(noise_multiplier=8.0, gain_clip=0.5, least_gain=-1.0)
    valued = base.model_copy(update={"guide": base.guide.model_copy(update={"trials": trials})})
    parameters = statistics_parameters(valued)
    few = NoisedStatistics(
        vector=np.zeros(parameters.length, dtype=np.int64), parameters=parameters
    )
    even = choose_cells(valued, SiteState(), few)
    assert even.fallback is not None
    assert even.utilities.tolist() == [1.0, 1.0]
    state = SiteState(
        valuations=(
            ClusterValuation(cluster=0, paths=8, gain=0.5, std=0.05),
            ClusterValuation(cluster=1, paths=8, gain=-0.9, std=0.05),
        )
    )
    parted = choose_cells(valued, state, few).utilities
    assert parted[0] == 1.0
    assert parted[1] < 0.01
