"""A site's training in a round: what it reads, where it starts, what it leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from method_doubles import (
    BAD,
    GOOD,
    GUIDE,
    known,
    ledger,
    plan,
    received,
    site_context,
    trained_on_good,
)

from lada_secure.allocation.fallback import Fallback
from lada_secure.allocation.gap import SlmKnowledge
from lada_secure.data.forms import CLOZE
from lada_secure.data.records import Record
from lada_secure.errors import LedgerError
from lada_secure.method import site_training, training
from lada_secure.method.mechanisms import private_learning_rate
from lada_secure.method.plan import MethodPlan
from lada_secure.method.site_context import SiteContext
from lada_secure.method.site_knowledge import replayed
from lada_secure.method.site_round import site_adapters, site_statistics
from lada_secure.method.site_state import SiteState
from lada_secure.method.site_training import train, wear_start
from lada_secure.method.training import private_units
from lada_secure.models.adapters import adapter_weights, parse_adapter_tensors
from lada_secure.models.examples import private_unit
from lada_secure.models.tuning import TuningSettings
from lada_secure.privacy.release.units import Unit

EVERYTHING = [*received(GOOD, cell=0), *received(BAD, cell=1)]


def record(number: int, answer: str = "9", rationale: str | None = None) -> Record:
    return Record(
        record_id=f"r{number}",
        unit="u",
        question=f"question {number}",
        choices=(),
        answer=answer,
        rationale=rationale,
    )


def study(**guide: object) -> MethodPlan:
    """Two rounds with a few private steps, a DP reference model, and no screen."""
    base = plan()
    return base.model_copy(
        update={
            "guide": GUIDE.model_copy(update=guide),
            "allocation": base.allocation.model_copy(
                update={"screen_low": 0.0, "screen_high": 1.0}
            ),
            "training": base.training.model_copy(
                update={"noise_multiplier": 4.0, "sampling_probability": 0.5, "steps_per_round": 2}
            ),
        }
    )


def joint() -> MethodPlan:
    """Private records and pool samples train one model."""
    return study().model_copy(update={"guide": None})


def site_of(base: MethodPlan) -> SiteContext:
    return site_context(base, [Unit(unit_id="u", records=(record(0, rationale="told"),))])


def one_round(site: SiteContext, state: SiteState, round_id: int) -> site_training.TrainedRound:
    noised = site_statistics(site, state, round_id).value
    return train(site, state, round_id, noised, EVERYTHING)


def test_a_round_leaves_what_the_next_one_starts_from() -> None:
    site = site_of(study())
    done = one_round(site, SiteState(picks={0: (0, 1, 3)}), 0)
    state = done.state
    assert [known.pool_index for known in state.rationales] == [0, 1, 3]
    assert all(0.0 < known.p < 1.0 and known.gain is not None for known in state.rationales)
    assert state.trained == (0,)
    assert set(done.trained_on) <= {0, 1, 3}
    assert state.student == adapter_weights(site.lm)
    assert state.dp_reference not in (None, state.student)
    assert len(state.history.rounds) == 1
    assert len(done.cells) == 2
    assert site_adapters(site, state, 0).value == state.student


def test_a_step_that_was_interrupted_is_taken_again_from_the_state_before_it() -> None:
    site = site_of(study())
    before = SiteState(picks={0: (0, 1, 3)})
    first, again = one_round(site, before, 0), one_round(site, before, 0)
    # DP-SGD comes out of the ledger, so all that follows from it is the same.
    assert (again.trained_on, again.cells) == (first.trained_on, first.cells)
    assert again.state.history.to_json() == first.state.history.to_json()
    assert replace(again.state, history=first.state.history) == first.state


@pytest.mark.parametrize("base", [study(), joint()], ids=["guide", "joint"])
def test_rationales_of_earlier_rounds_take_part_again_and_are_not_taken_in_twice(
    base: MethodPlan,
) -> None:
    site = site_of(base)
    first = one_round(site, SiteState(picks={0: (0, 1)}), 0).state
    second = one_round(site, first.with_picks(1, (0, 2)), 1)
    assert [known.pool_index for known in second.state.rationales] == [0, 1, 2]
    # How likely a rationale was before anything was learned from it is measured once.
    assert [known.p for known in second.state.rationales[:2]] == [
        known.p for known in first.rationales
    ]
    if base.guide is None:
        assert second.trained_on == (0, 1, 2)


def test_what_was_not_asked_for_is_not_taken_in() -> None:
    site = site_of(joint())
    assert one_round(site, SiteState(picks={0: ()}), 0).state.rationales == ()


def test_the_screen_keeps_what_the_slm_cannot_follow_out() -> None:
    base = joint()
    narrow = base.allocation.model_copy(update={"screen_low": 0.9, "screen_high": 1.0})
    site = site_of(base.model_copy(update={"allocation": narrow}))
    done = one_round(site, SiteState(picks={0: (0, 1, 2)}), 0)
    assert done.trained_on == ()
    assert len(done.state.rationales) == 3


def test_a_student_starts_from_a_share_of_the_dp_reference_models_update() -> None:
    site = site_of(study())
    weights = trained_on_good(site)
    whole = parse_adapter_tensors(weights)
    name = next(one for one in whole if "lora_B" in one)
    state = SiteState(dp_reference=weights)
    weak = Fallback(action="no_pool", cause="llm_weaker", because="it is")
    # Without the pool nothing makes up for the other half.
    for start, share in ((state, 0.5), (state.with_fallback(1, weak), 1.0)):
        wear_start(site, start, 1)
        started = parse_adapter_tensors(adapter_weights(site.lm))
        assert np.allclose(started[name], share * whole[name], atol=1e-7)


def test_a_student_repeats_what_the_slm_knew_where_the_plan_says_so() -> None:
    left = []
    for size in (None, 4):
        base = study(replay_batch_size=size, pool_steps=30, pool_learning_rate=2e-2)
        # Without judges, so that something is learned whatever the noise.
        domain = base.allocation.model_copy(update={"strategy": "domain"})
        site = site_of(base.model_copy(update={"allocation": domain}))
        count = len(site.pool)
        right = np.arange(count) == count - 1
        site.untaught = SlmKnowledge(
            right=right, confidence=np.where(right, 0.9, 0.0), paths=("known 7\n7",) * count
        )
        (kept,) = replayed(site, GUIDE.model_copy(update={"replay_batch_size": 4}))
        assert kept.example_id == site.pool[-1].sample_id
        before = site.losses([kept])[0]
        done = one_round(site, SiteState(picks={0: (0, 1, 2)}), 0)
        site.wear(done.state)
        left.append(site.losses([kept])[0] - before)
    assert left[1] < -1.0
    assert left[0] > left[1] + 1.0


@pytest.mark.parametrize("finish", [False, True])
def test_the_last_rounds_private_steps_go_on_from_the_student_if_the_plan_says_so(
    finish: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = site_of(study(finish=finish))
    state = SiteState(picks={1: (0, 1, 2)}, trained=(0,), dp_reference=trained_on_good(site))
    taught: list[int] = []
    started: list[object] = []
    tune, distil = site_training.tune_on_rationales, site_training.distil

    def tuned(lm: Any, learn: Sequence[Any], keep: Any, settings: TuningSettings) -> Any:
        taught.append(settings.steps)
        return tune(lm, learn, keep, settings)

    def distilled(lm: Any, **options: Any) -> Any:
        started.append(adapter_weights(lm))
        assert options["pool"] == ()
        assert options["settings"].learning_rate == pytest.approx(
            site.plan.distillation.learning_rate * GUIDE.rate_decay
        )
        return distil(lm, **options)

    monkeypatch.setattr(site_training, "tune_on_rationales", tuned)
    monkeypatch.setattr(site_training, "distil", distilled)
    done = one_round(site, state, 1)
    # The last round has its own number of steps on pool samples.
    assert taught == [GUIDE.last_pool_steps]
    assert (started == [state.dp_reference]) is not finish
    assert (done.state.dp_reference == state.dp_reference) is finish


def test_the_learning_rate_of_private_steps_falls_from_round_to_round() -> None:
    rates = [private_learning_rate(study(), round_id) for round_id in range(2)]
    assert rates[1] == pytest.approx(rates[0] * GUIDE.rate_decay)


def test_adapters_of_a_round_that_was_not_trained_are_no_release() -> None:
    with pytest.raises(LedgerError, match="not finished"):
        site_adapters(site_of(joint()), SiteState(), 0)


def test_records_without_rationales_are_left_out_and_their_unit_stays() -> None:
    mixed = Unit(unit_id="u", records=(record(0, rationale="because"), record(1)))
    bare = Unit(unit_id="u", records=(record(2),))
    assert [one.example_id for one in private_unit(mixed, CLOZE).examples] == ["r0", "r1"]
    kept = private_unit(mixed, CLOZE, with_reasons_only=True)
    assert [one.example_id for one in kept.examples] == ["r0"]
    assert private_unit(bare, CLOZE, with_reasons_only=True).examples == ()


def test_bare_answers_take_part_from_the_second_round_on_where_the_model_reaches_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site = site_of(study())
    asked: list[Sequence[Unit]] = []

    def written(
        lm: object, units: Sequence[Unit], **options: object
    ) -> list[tuple[str | None, ...]]:
        assert lm is site.lm
        asked.append(units)
        return [(None, "because\n9", None)]

    monkeypatch.setattr(training, "self_generated_rationales", written)
    units = [Unit(unit_id="u", records=(record(0, rationale="told"), record(1), record(2, "8")))]

    def texts(base: MethodPlan, round_id: int) -> list[str]:
        (unit,) = private_units(base, site.lm, units, round_id=round_id, batch_size=4)
        return [example.path for example in unit.examples]

    assert texts(study(), 1) == ["told\n9"]
    assert texts(study(own_reasons=True), 0) == ["told\n9"]
    assert asked == []
    assert texts(study(own_reasons=True), 1) == ["told\n9", "because\n9"]
    assert asked == [units]
    assert texts(study(records_with_reasons=False), 1) == ["told\n9", "9", "8"]
    # Without a guide everything is learned, and the pool beside it.
    assert texts(joint(), 1) == ["told\n9", "9", "8"]


def test_a_study_that_was_begun_elsewhere_needs_no_more_than_its_state() -> None:
    base = study()
    book = ledger(base)
    units = [Unit(unit_id="u", records=(record(0, rationale="told"),))]
    first = site_context(base, units, book=book)
    state = one_round(first, SiteState(picks={0: (0, 1)}), 0).state
    again = site_context(base, units, book=book)
    more = state.with_picks(1, (2,))
    assert one_round(again, more, 1).state.rationales[0] == replace(
        known({0: GOOD[0]}, cell=0)[0],
        p=state.rationales[0].p,
        drawn=state.rationales[0].drawn,
        gain=one_round(first, more, 1).state.rationales[0].gain,
    )
