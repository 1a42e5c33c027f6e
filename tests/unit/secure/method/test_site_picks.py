"""How a site picks: by what its SLM makes of the public pool, where the plan reads it."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
from form_models import form_model, taught_samples
from method_doubles import GUIDE, plan, site_context

from lada_secure.allocation.statistics import NoisedStatistics
from lada_secure.method import site_knowledge
from lada_secure.method.mechanisms import statistics_parameters
from lada_secure.method.plan import MethodPlan
from lada_secure.method.site_context import SiteContext
from lada_secure.method.site_knowledge import (
    lacking_by_topic,
    replayed,
    site_choice,
    slm_knowledge,
)
from lada_secure.method.site_round import pick
from lada_secure.method.site_state import SiteState
from lada_secure.models.adapters import AdapterSettings, adapter_weights, attach_adapters
from lada_secure.models.confidence import answer_pool

# Two of its questions have gold answers that the model was taught otherwise.
POOL = tuple(
    replace(sample, answer="cow") if at in (0, 3) else sample
    for at, sample in enumerate(taught_samples())
)
WRONG = (0, 3)


def study(**allocation: object) -> MethodPlan:
    base = plan()
    return base.model_copy(
        update={
            "guide": None,
            "pool_size": len(POOL),
            "paths": base.paths.model_copy(update={"max_new_tokens": 20}),
            "allocation": base.allocation.model_copy(
                update={"strategy": "domain", "quota": 4, "threshold": 0.0, **allocation}
            ),
        }
    )


@pytest.fixture
def site() -> SiteContext:
    taught = form_model("cloze")
    # That one is shared with other tests.
    lm = attach_adapters(
        replace(taught, model=copy.deepcopy(taught.model)), AdapterSettings(rank=2)
    )
    return site_context(study(sample_value="gap"), lm=lm, pool=POOL)  # type: ignore[arg-type]


def equal_masses(site: SiteContext) -> NoisedStatistics:
    parameters = statistics_parameters(site.plan)
    return NoisedStatistics(
        vector=np.full(parameters.length, 500, dtype=np.int64), parameters=parameters
    )


def picks(site: SiteContext, state: SiteState, *, round_id: int = 0) -> tuple[int, ...]:
    scores = np.full(len(POOL), 0.5)
    return tuple(pick(site, state, round_id, equal_masses(site), scores).picks[round_id])


def test_a_gap_asks_for_what_the_slm_answers_wrongly(site: SiteContext) -> None:
    assert picks(site, SiteState()) == WRONG


def test_it_is_the_slm_after_the_rounds_so_far_that_answers(site: SiteContext) -> None:
    state = SiteState()
    before = slm_knowledge(site, state)
    # A student that has forgotten: its adapters are far off.
    for parameter in site.lm.model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(0.0, 1.0)
    forgetful = replace(state, student=adapter_weights(site.lm))
    after = slm_knowledge(site, forgetful)
    assert before is not None
    assert after is not None
    assert (before.right != after.right).any()
    # Whatever the model wears when it is asked, the state decides.
    again = slm_knowledge(site, state)
    assert again is not None
    np.testing.assert_array_equal(before.confidence, again.confidence)


def test_a_site_that_was_interrupted_picks_the_same_and_keeps_what_it_picked(
    site: SiteContext,
) -> None:
    gaining = replace(site, plan=study(sample_value="gain"))
    assert picks(gaining, SiteState()) == picks(gaining, SiteState())
    kept = SiteState(picks={0: (5,)})
    assert picks(site, kept) == (5,)


@pytest.mark.parametrize(
    ("allocation", "asked"),
    [
        ({}, 0),
        ({"sample_value": "score"}, 0),
        ({"sample_value": "gain"}, 1),
        ({"strategy": "gain"}, 1),
    ],
)
def test_the_slm_answers_the_pool_where_the_plan_reads_it_alone(
    site: SiteContext,
    allocation: dict[str, object],
    asked: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[int] = []

    def counted(lm, samples, **settings):  # type: ignore[no-untyped-def]
        # All of it, so that the time says nothing of the scores.
        calls.append(len(samples))
        return answer_pool(lm, samples, **settings)

    monkeypatch.setattr(site_knowledge, "answer_pool", counted)
    # A fallback, where it is on, asks the SLM in any plan.
    picks(replace(site, plan=study(**allocation, fallback="off")), SiteState())
    assert calls == [len(POOL)] * asked


def test_what_a_topic_lacks_is_the_mean_over_its_pool_samples(site: SiteContext) -> None:
    slm = slm_knowledge(site, SiteState())
    assert slm is not None
    lacking = lacking_by_topic(site, slm)
    for topic in range(site.plan.allocation.clusters):
        here = [at for at, place in enumerate(site.pool_clusters) if place == topic]
        expected = np.mean([1.0 - slm.confidence[at] for at in here]) if here else 0.0
        assert lacking[topic] == pytest.approx(expected)


def test_the_worth_of_cells_follows_the_slm_from_round_to_round(site: SiteContext) -> None:
    noised = equal_masses(site)
    gain = replace(site, plan=study(strategy="gain"))
    untaught = site_choice(gain, SiteState(), noised).view.lacking
    for parameter in site.lm.model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(0.0, 1.0)
    taught = replace(SiteState(), student=adapter_weights(site.lm))
    forgetful = site_choice(gain, taught, noised).view.lacking
    assert untaught is not None
    assert forgetful is not None
    assert forgetful.sum() > untaught.sum()
    again = site_choice(gain, SiteState(), noised).view.lacking
    np.testing.assert_array_equal(untaught, again)


def test_what_is_repeated_is_what_the_slm_wrote_and_was_right_on(site: SiteContext) -> None:
    # Whatever it wears by now.
    for parameter in site.lm.model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(0.0, 1.0)
    guide = GUIDE.model_copy(update={"replay_batch_size": 2})
    assert replayed(site, GUIDE) == ()
    found = replayed(site, guide)
    names = [POOL[at].sample_id for at in range(len(POOL)) if at not in WRONG]
    assert [one.example_id for one in found] == names
    for one in found:
        sample = next(sample for sample in POOL if sample.sample_id == one.example_id)
        assert site.lm.form.right(one.path, sample.choices, sample.answer)
