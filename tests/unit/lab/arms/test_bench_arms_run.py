"""Every condition runs a whole study, on one budget, and reads nothing that is held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lada_lab.arms import guides as guides_module
from lada_lab.arms import party as party_module
from lada_lab.arms.arms import ARMS
from lada_lab.arms.party import Party
from lada_lab.arms.simulation import Laboratory, Outcome, PreparedWorld
from lada_lab.arms.study import StudySettings
from lada_lab.baselines import rounds
from lada_lab.baselines.baseline import Baseline, Payload
from lada_lab.baselines.rounds import BaselineTraining
from lada_secure.data.prompts import answer_of
from lada_secure.dpsgd.distillation import distil
from lada_secure.models.adapters import AdapterWeights
from lada_secure.models.examples import RationaleExample
from lada_secure.models.loading import LanguageModel
from lada_secure.models.tuning import TuningSettings, tune_on_rationales
from lada_secure.privacy.accounting.accountant import epsilon
from lada_secure.privacy.ledger.entries import ReserveEntry

# They differ from another condition in one setting, which test_bench_study.py looks at.
_ALIKE = (
    *("no-exploration", "with-contrast", "no-clustering", "no-screen", "random-joint"),
    *("random-pool-private", "random-nonprivate", "domain-screen"),
)


class Steps:
    """Counts optimiser steps and examples per step of whatever trains a student on pool paths."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.taken: list[tuple[int, int]] = []
        real_tune, real_host = tune_on_rationales, rounds.train_baseline

        def tune(
            lm: LanguageModel,
            examples: Sequence[RationaleExample],
            replay: Sequence[RationaleExample],
            settings: TuningSettings,
        ) -> AdapterWeights:
            self.taken.append((settings.steps_for(len(examples)), settings.batch_size))
            return real_tune(lm, examples, replay, settings)

        def host(
            one: Baseline,
            lm: LanguageModel,
            payloads: Sequence[Payload],
            training: BaselineTraining,
        ) -> None:
            if payloads:
                self.taken.append((training.steps, training.batch_size))
            real_host(one, lm, payloads, training)

        monkeypatch.setattr(party_module, "tune_on_rationales", tune)
        monkeypatch.setattr(rounds, "train_baseline", host)


# One study of each, for all tests below.
_STUDIES: dict[str, tuple[Outcome, Steps]] = {}


def study(name: str, laboratory: Laboratory) -> tuple[Outcome, Steps]:
    if name not in _STUDIES:
        with pytest.MonkeyPatch.context() as monkeypatch:
            steps = Steps(monkeypatch)
            _STUDIES[name] = laboratory.simulate(ARMS[name], epsilon=8.0), steps
    return _STUDIES[name]


def outcome(name: str, laboratory: Laboratory) -> Outcome:
    return study(name, laboratory)[0]


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in _ALIKE else ()) for name in ARMS],
)
def test_every_condition_runs_and_keeps_to_its_budget(
    name: str, laboratory: Laboratory, small_settings: StudySettings
) -> None:
    found, steps = study(name, laboratory)
    arm = ARMS[name]
    assert 0.0 <= found.accuracy <= 1.0
    assert found.accuracy == pytest.approx(sum(found.by_site) / 3)
    assert found.epsilon == (8.0 if arm.privacy == "dp" else None)
    assert bool(found.uplinks) == arm.uplink
    budget = {"none": 0, "all": small_settings.world.pool}.get(arm.strategy, small_settings.quota)
    last = [reports[-1] for reports in found.details.values()]
    assert all(one["trained"] <= one["received"] <= one["asked"] <= budget for one in last)
    if not arm.teaches_llm:
        assert found.llm_accuracy == found.llm_before
    # The same steps of the same size for every student that has something to learn.
    each = (small_settings.final_steps, small_settings.pool_batch_size)
    if arm.host == "fedcollm":
        # One shared model takes as many steps as three of their own.
        assert steps.taken in ([(3 * each[0], each[1])], [])
    elif arm.joint is None:
        learning = sum(one["trained"] > 0 for one in last)
        assert set(steps.taken) <= {each}
        # FedMKT's own selection may leave nothing to learn.
        assert len(steps.taken) <= learning if arm.host else len(steps.taken) == learning


@pytest.mark.parametrize("name", ["random", "paper", "band", "lada-secure", "fedmkt"])
def test_no_pick_is_wasted_on_a_sample_that_the_llm_cannot_solve(
    name: str, laboratory: Laboratory
) -> None:
    last = [reports[-1] for reports in outcome(name, laboratory).details.values()]
    assert all(one["received"] == one["asked"] for one in last)
    assert any(one["asked"] for one in last)


def test_the_baselines_really_train(laboratory: Laboratory) -> None:
    """So that the comparison above is not one of nothing with nothing."""
    assert len(study("fedmkt", laboratory)[1].taken) >= 1
    assert len(study("fedcollm", laboratory)[1].taken) == 1
    assert len(study("random", laboratory)[1].taken) == 3


def test_a_second_round_learns_from_the_first(
    prepared: PreparedWorld, small_settings: StudySettings
) -> None:
    """Rewards reach the filter, picks are never repeated, and all paths are trained on again."""
    settings = replace(small_settings, rounds=2, private_steps=(2, 1), least_share=0.0)
    laboratory = Laboratory.open(prepared, settings)
    coordinator = laboratory.coordinator
    (releases, *_) = laboratory.releases(None)
    # No screens, so that every path that is received is trained on and rewarded.
    arm = replace(ARMS["lada-nonprivate"], screened=False, strategy="lada")
    party = Party.open(arm, settings, releases, coordinator, laboratory.lm, epsilon=8.0)
    first = party.choose(0)
    party.train(0, coordinator.write(first))
    assert party.state.allocation.history.rounds
    student = party.student
    second = party.choose(1)
    assert first
    assert not set(first) & set(second)
    party.train(1, coordinator.write(second))
    assert party.student != student
    assert [one["trained"] for one in party.reports] == [len(first), len(first) + len(second)]
    assert party.reports[-1]["asked"] == len(first) + len(second)


@pytest.mark.parametrize("name", ["lada-secure", "no-pool", "domain-late"])
def test_the_steps_that_the_guide_leaves_are_taken_on_the_student(
    name: str,
    prepared: PreparedWorld,
    small_settings: StudySettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Guide and finish together take the steps that the noise was calibrated for, no more."""
    taken: list[int] = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        taken.append(kwargs["privacy"].steps)
        return distil(*args, **kwargs)

    monkeypatch.setattr(guides_module, "distil", counted)
    settings = replace(small_settings, rounds=2, private_steps=(2, 1))
    laboratory = Laboratory.open(prepared, settings)
    (releases, *_) = laboratory.releases(8.0)
    party = Party.open(
        ARMS[name], settings, releases, laboratory.coordinator, laboratory.lm, epsilon=8.0
    )
    for round_id in range(2):
        party.train(round_id, laboratory.coordinator.write(party.choose(round_id)))
    before = party.student
    assert taken == {"lada-secure": [2], "no-pool": [2, 1], "domain-late": []}[name]
    party.finish()
    assert taken == [2, 1]
    assert (party.student == before) == (name == "no-pool")


def test_paths_that_are_sent_end_in_the_gold_answer(laboratory: Laboratory) -> None:
    pool = laboratory.prepared.data.pool
    written = laboratory.coordinator.write(range(len(pool)))
    assert 0 < len(written) < len(pool)
    assert all(answer_of(path, ()) == pool[place].answer for place, path in written.items())


def test_all_releases_of_an_arm_together_stay_within_its_epsilon(
    laboratory: Laboratory,
) -> None:
    outcome("lada-secure", laboratory)
    spent = [one.spent() for one in laboratory.releases(8.0)]
    assert all(7.0 < one <= 8.0 * 1.001 for one in spent)
    arm = ARMS["lada-joint"]
    party = Party.open(
        arm,
        laboratory.settings,
        laboratory.releases(8.0)[0],
        laboratory.coordinator,
        laboratory.lm,
        epsilon=8.0,
    )
    party.train(0, laboratory.coordinator.write(party.choose(0)))
    assert party.joint is not None
    # Statistics and training in one ledger of the arm's own.
    total = party.joint.book.epsilon_spent(laboratory.settings.target_delta)
    assert 7.0 < total <= 8.0 * 1.001


@pytest.mark.parametrize("name", ["lada-secure", "no-trials"])
def test_both_ledgers_of_an_arm_together_stay_within_its_epsilon(
    name: str, prepared: PreparedWorld, small_settings: StudySettings
) -> None:
    """What all arms share, and what this one took alone: valuations and the last private steps."""
    settings = replace(small_settings, rounds=2, private_steps=(2, 1), quota=20)
    laboratory = Laboratory.open(prepared, settings)
    (releases, *_) = laboratory.releases(8.0)
    party = Party.open(
        ARMS[name], settings, releases, laboratory.coordinator, laboratory.lm, epsilon=8.0
    )
    # What a site picks depends on noise, and may be too little for a valuation; the pool is not.
    everything = laboratory.coordinator.write(range(len(prepared.data.pool)))
    for round_id, received in enumerate((everything, {})):
        party.choose(round_id)
        party.train(round_id, received)
    party.finish()
    assert releases.book is not None
    assert party.ledger is not None
    paid = [
        one
        for book in (releases.book, party.ledger)
        for one in book.entries()
        if isinstance(one, ReserveEntry)
    ]
    trials = ["trials"] * 2 if name == "lada-secure" else []
    assert sorted(one.purpose for one in paid) == sorted(
        ["statistics"] * 2 + ["training"] * 2 + trials
    )
    total = epsilon([one.event for one in paid], target_delta=settings.target_delta)
    # The noise is everybody's, so that an arm without valuations spends a little less.
    assert 7.0 < total <= 8.0 * 1.001
    assert (total > 7.9) == (name == "lada-secure")


def test_trials_are_read_where_a_cluster_had_enough_paths(
    prepared: PreparedWorld, small_settings: StudySettings
) -> None:
    settings = replace(small_settings, quota=30)
    laboratory = Laboratory.open(prepared, settings)
    (releases, *_) = laboratory.releases(None)
    party = Party.open(
        ARMS["lada-nonprivate"],
        settings,
        releases,
        laboratory.coordinator,
        laboratory.lm,
        epsilon=8.0,
    )
    assert party.trials is not None
    assert party.trials.agreement() is None
    received = laboratory.coordinator.write(party.choose(0))
    party.train(0, received)
    clusters = np.bincount(
        laboratory.coordinator.pool_clusters[list(received)],
        minlength=laboratory.coordinator.grid.clusters,
    )
    assert clusters.max() >= 3
    assert party.trials.found.tried.tolist() == (clusters >= 3).tolist()
    sure = party.trials.agreement()
    assert sure is not None
    assert sure.shape == (laboratory.coordinator.grid.cells,)


def test_an_arm_without_a_guide_pays_for_everything_itself(
    prepared: PreparedWorld, small_settings: StudySettings
) -> None:
    settings = replace(small_settings, rounds=2, private_steps=(2, 1))
    laboratory = Laboratory.open(prepared, settings)
    (releases, *_) = laboratory.releases(8.0)
    party = Party.open(
        ARMS["domain-late"], settings, releases, laboratory.coordinator, laboratory.lm, epsilon=8.0
    )
    for round_id in range(2):
        party.train(round_id, laboratory.coordinator.write(party.choose(round_id)))
    party.finish()
    assert releases.spent() == 0.0
    assert party.ledger is not None
    assert 7.0 < party.ledger.epsilon_spent(settings.target_delta) <= 8.0 * 1.001


def test_without_a_pool_a_student_is_the_whole_guide(laboratory: Laboratory) -> None:
    releases = laboratory.releases(8.0)[0]
    party = Party.open(
        ARMS["no-pool"],
        laboratory.settings,
        releases,
        laboratory.coordinator,
        laboratory.lm,
        epsilon=8.0,
    )
    assert party.choose(0) == []
    party.train(0, {})
    assert party.student.data == releases.guide(0).data
