"""A site's guide: what it takes up, how it judges, what passes, and what a student learns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from guidance_doubles import BAD, GOOD, GUIDE, POOL, ledger, received, trained_on_good
from trainer_doubles import example

from lada_clients.site import guidance as guidance_module
from lada_clients.site import training as training_module
from lada_clients.site.guidance import Guidance
from lada_clients.site.learner import SiteLearner
from lada_clients.site.memory import JudgedRationale
from lada_clients.site.training import private_units
from lada_protocol.plan import StudyPlan
from lada_secure.data.records import Record
from lada_secure.dpsgd.private_examples import private_unit
from lada_secure.models.adapters import (
    AdapterWeights,
    adapter_weights,
    load_adapters,
    parse_adapter_tensors,
)
from lada_secure.models.loss import LossSettings
from lada_secure.models.tuning import TuningSettings
from lada_secure.privacy.release.private_records import PrivateRecords
from lada_secure.privacy.release.units import Unit


def test_the_guide_favours_what_it_was_trained_on_and_only_that_passes(guidance: Guidance) -> None:
    paths = guidance.take([*received(GOOD, cell=0), *received(BAD, cell=1)])
    assert [one.sample for one in paths] == [0, 1, 2, 3, 4, 5]
    assert all(1 <= len(one.own_paths) <= GUIDE.own_paths for one in paths)

    judged = guidance.judge(paths, trained_on_good(guidance))

    gains = [one.gain for one in judged]
    assert min(gains[:3]) > max(gains[3:])
    assert guidance.passing(judged, np.full(6, 0.5)) == [0, 1, 2]
    # Beyond the band of the plan (0.02 to 1), agreement does not help.
    assert guidance.passing(judged, np.array([0.5, 0.001, 0.5, 0.5, 0.5, 0.5])) == [0, 2]


def test_own_paths_are_drawn_from_the_reference_and_once(
    guidance: Guidance, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_adapters(guidance.model, trained_on_good(guidance))
    first = guidance.take(received(GOOD, cell=0))
    assert adapter_weights(guidance.model) == guidance.reference
    guidance.memory.keep_judged_paths(first)
    asked: list[int] = []
    draw = guidance_module.sampled_responses

    def counted(lm: object, prompts: list[str], **options: object) -> object:
        asked.append(len(prompts))
        return draw(lm, prompts, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(guidance_module, "sampled_responses", counted)
    again = guidance.take([*received(GOOD, cell=0), *received(BAD, cell=1)])
    assert asked == [3]
    assert again[:3] == first
    guidance.memory.keep_judged_paths(again)
    assert guidance.take([]) == again
    assert asked == [3]


def test_without_any_path_nothing_is_judged_and_nothing_is_taught(guidance: Guidance) -> None:
    assert guidance.take([]) == []
    assert guidance.judge([], guidance.reference) == []
    assert guidance.passing([], np.zeros(0)) == []
    before = adapter_weights(guidance.model)
    guidance.teach([], round_id=0, loss=LossSettings())
    assert adapter_weights(guidance.model) == before


def test_a_round_goes_on_from_the_newest_guide_before_it(guidance: Guidance) -> None:
    assert guidance.guide_before(0) == guidance.reference
    assert guidance.guide_before(2) == guidance.reference
    guidance.memory.keep_guide(0, b"first")
    guidance.memory.keep_guide(1, b"second")
    assert guidance.guide_before(1).data == b"first"
    # Started again in the middle of round 1: not from round 1's own guide.
    assert guidance.guide_before(2).data == b"second"


def test_a_student_starts_from_a_share_of_the_guides_update(guidance: Guidance) -> None:
    guide = trained_on_good(guidance)
    guidance.start(guide)
    started = parse_adapter_tensors(adapter_weights(guidance.model))
    whole = parse_adapter_tensors(guide)
    name = next(one for one in whole if "lora_B" in one)
    assert np.allclose(started[name], 0.5 * whole[name], atol=1e-7)


def test_the_last_round_takes_its_own_number_of_steps(
    guidance: Guidance, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []

    def recorded(lm: object, learn: object, keep: object, settings: TuningSettings) -> None:
        taken.append(settings.steps)

    monkeypatch.setattr(guidance_module, "tune_on_rationales", recorded)
    for round_id in (0, 1):
        guidance.teach([example(0)], round_id=round_id, loss=LossSettings())
    assert taken == [GUIDE.pool_steps, GUIDE.last_pool_steps]


def test_records_without_reasons_are_left_out_and_their_unit_stays() -> None:
    def record(number: int, rationale: str | None) -> Record:
        return Record(
            record_id=f"r{number}",
            unit="u",
            question=f"question {number}",
            choices=(),
            answer="9",
            rationale=rationale,
        )

    mixed = Unit(unit_id="u", records=(record(0, "because"), record(1, None)))
    bare = Unit(unit_id="u", records=(record(2, None),))
    assert [one.example_id for one in private_unit(mixed).examples] == ["r0", "r1"]
    kept = private_unit(mixed, with_reasons_only=True)
    assert [one.example_id for one in kept.examples] == ["r0"]
    assert private_unit(bare, with_reasons_only=True).examples == ()


def bare(number: int, answer: str) -> Record:
    return Record(
        record_id=f"r{number}",
        unit="u",
        question=f"question {number}",
        choices=(),
        answer=answer,
        rationale=None,
    )


def test_bare_answers_take_part_from_the_second_round_on_where_the_model_reaches_them(
    guidance: Guidance, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Sequence[Unit]] = []

    def written(
        lm: object, units: Sequence[Unit], **options: object
    ) -> list[tuple[str | None, ...]]:
        assert lm is guidance.model
        asked.append(units)
        return [(None, "because\n9", None)]

    monkeypatch.setattr(training_module, "self_generated_rationales", written)
    reasoned = replace(bare(0, "9"), rationale="told")
    units = [Unit(unit_id="u", records=(reasoned, bare(1, "9"), bare(2, "8")))]

    def paths(plan: StudyPlan, round_id: int) -> list[str]:
        (unit,) = private_units(plan, guidance.model, units, round_id=round_id, batch_size=4)
        return [example.path for example in unit.examples]

    def planned(**changes: object) -> StudyPlan:
        return guidance.plan.model_copy(update={"guide": GUIDE.model_copy(update=changes)})

    assert paths(guidance.plan, 1) == ["told\n9"]
    assert paths(planned(own_reasons=True), 0) == ["told\n9"]
    assert asked == []
    assert paths(planned(own_reasons=True), 1) == ["told\n9", "because\n9"]
    assert asked == [units]
    assert paths(planned(records_with_reasons=False), 1) == ["told\n9", "9", "8"]
    # Without a guide everything is learned, and the pool beside it.
    assert paths(guidance.plan.model_copy(update={"guide": None}), 1) == ["told\n9", "9", "8"]


def learner(guidance: Guidance) -> SiteLearner:
    """A site with one unit, just far enough to train a round with its guide."""
    settings: Any = SimpleNamespace(physical_batch_size=4, device="cpu", threads=1)
    unused: Any = None
    return SiteLearner(
        plan=guidance.plan,
        settings=settings,
        pool=POOL,
        clusters=unused,
        records=PrivateRecords(
            [Unit(unit_id="u", records=(replace(bare(0, "9"), rationale="told"),))]
        ),
        held_out=(),
        memory=guidance.memory,
        model=guidance.model,
        grid=unused,
        allocator=unused,
        guidance=guidance,
    )


@pytest.mark.parametrize("finish", [False, True])
def test_the_private_steps_of_the_last_round_go_on_from_the_student_if_the_plan_says_so(
    guidance: Guidance, finish: bool
) -> None:
    made = trained_on_good(guidance)
    guidance.memory.keep_guide(0, made.data)
    guidance = replace(guidance, settings=GUIDE.model_copy(update={"finish": finish}))
    assert not guidance.finishes(0)
    started: list[AdapterWeights] = []

    def distilling(**options: Any) -> Any:
        started.append(adapter_weights(guidance.model))
        assert options["pool"] == ()
        assert options["settings"].learning_rate == pytest.approx(
            guidance.plan.distillation.learning_rate * GUIDE.rate_decay
        )
        # As if the private steps had found nothing.
        return SimpleNamespace(adapters=SimpleNamespace(value=started[0]))

    paths = [*received(GOOD, cell=0), *received(BAD, cell=1)]
    judged, places, _ = learner(guidance)._guided(
        guidance, paths, distilling, book=ledger(guidance.plan), round_id=1
    )

    # The screen of p drops some, too; what contradicts the guide never passes.
    assert 0 in places
    assert set(places) <= {0, 1, 2}
    assert len(judged) == 6
    (start,) = started
    assert (start == made) is not finish
    # Taught after the private steps, or before them and left as they were.
    assert (adapter_weights(guidance.model) == start) is finish
    assert (guidance.memory.guide(1) is None) is finish


def test_a_judged_path_keeps_its_texts(guidance: Guidance) -> None:
    (one,) = guidance.judge(
        [JudgedRationale(sample=0, cell=0, path="good 0", own_paths=[], gain=1.0)],
        guidance.reference,
    )
    # Nothing of its own to compare with: no gain, rather than a guess.
    assert one == JudgedRationale(sample=0, cell=0, path="good 0", own_paths=[], gain=0.0)
