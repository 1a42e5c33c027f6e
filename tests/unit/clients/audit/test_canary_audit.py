"""The audit finds planted faults of the shipped trainer and leaves the right one alone.

Confidence is 1 - ALPHA, so a right trainer is flagged with probability at most ALPHA = 1e-6, by
the theorem and whatever the attacker does; delta is small enough for that to leave some reach.

How surely a fault is found: with sigma / 8 a step shows 0 or 1 with noise .25. Over 500 simulated
runs of this size the attacker expected .0002 wrong guesses a run on average and .0007 at most (the
sum of its own doubts); the audit flags with up to two wrong ones, so it misses a run with
probability below 1e-9. `test_the_attack_is_as_sure_as_stated` simulates that again.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from alpha import ALPHA
from trainer_doubles import small_model, units_of_sizes

from lada_clients.audit.canary_audit import (
    AuditedSteps,
    audit_size,
    audit_training,
    auditable_rounds,
)
from lada_secure.dpsgd import clipping, trainer
from lada_secure.dpsgd.noise import DiscreteGaussian
from lada_secure.dpsgd.parameters import DpSgdParameters, TrainerSettings
from lada_secure.dpsgd.unit_gradients import side_by_side
from lada_secure.errors import ParameterError
from lada_secure.models.adapters import AdapterSettings, attach_adapters
from lada_secure.privacy.accounting.accountant import epsilon
from lada_secure.privacy.empirical import commitment_of, largest_bound

CANARIES, GUESSES = 2200, 700
DELTA = 1e-9
CONFIDENCE = 1.0 - ALPHA
ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PRIVACY = DpSgdParameters(
    noise_multiplier=2.0,
    l2_clip_norm=1.0,
    sampling_probability=0.25,
    expected_units=20.0,
    steps=6,
    pool_gradients="public",
)
ROUNDS = 2


def adapted():
    lm = small_model(layers=2)
    attach_adapters(
        lm,
        AdapterSettings(
            rank=4, alpha=8.0, target_modules=ALL_LINEAR, last_layers=2, train_a=True, seed=0
        ),
    )
    return lm


def steps_of(rounds, *, delta=DELTA):
    return AuditedSteps(privacy=PRIVACY, rounds=rounds, delta=delta, confidence=CONFIDENCE)


def size_for(lm, **changes):
    return audit_size(lm, steps_of(changes.pop("rounds", ROUNDS)), **changes)


def audit(attack="updates", *, told=None, guesses=GUESSES):
    lm = adapted()
    told = [] if told is None else told
    return audit_training(
        lm,
        steps_of(ROUNDS),
        units_of=lambda _: units_of_sizes(1, 2, 3, 1, 2),
        pool_of=lambda _: [],
        settings_of=lambda round_id: TrainerSettings(
            pool_batch_size=0, seed=round_id, physical_batch_size=64
        ),
        size=size_for(lm, canaries=CANARIES, guesses=guesses),
        attack=attack,
        statement={"site": "a"},
        announce=told.append,
        progress=lambda done, total: told.append((done, total)),
    )


@pytest.fixture(scope="module")
def shipped():
    """The shipped trainer under attack, and what was told meanwhile."""
    told: list[object] = []
    return audit(told=told), told


def test_the_shipped_trainer_is_not_flagged(shipped) -> None:
    result, _ = shipped
    assert not result.flagged
    assert result.bound <= result.epsilon < result.largest_bound
    assert result.noise_seen == pytest.approx(2.0, rel=0.05)
    # An attack that is no better than a coin would find nothing anywhere: by chance 413 of 700
    # are right with probability ALPHA. The simulated attack gets 477 +- 15.
    assert result.correct > 413


def test_the_weak_attack_does_not_flag_the_shipped_trainer_either() -> None:
    result = audit("adapters")
    assert not result.flagged
    assert result.noise_seen is None
    assert result.guesses == GUESSES


def test_noise_eight_times_too_small_is_flagged(monkeypatch) -> None:
    monkeypatch.setattr(trainer, "DiscreteGaussian", lambda std: DiscreteGaussian(std / 8))
    result = audit()
    assert result.flagged
    assert result.noise_seen == pytest.approx(0.25, rel=0.1)


def test_units_that_are_not_clipped_are_flagged(monkeypatch) -> None:
    def add_unclipped(self, gradients) -> None:
        steps = self._clip_steps / self._clip
        whole = (side_by_side(gradients).double() * steps).trunc_().sum(0)
        self._totals[0] += whole.to(torch.int64)

    monkeypatch.setattr(clipping.ClippedSum, "add", add_unclipped)
    # A canary adds 64 where the noise is 2, and of about 1,100 that joined all but one in 32 are in
    # some step: 700 of them are known for certain.
    assert audit().flagged


def test_the_ledgers_side_is_the_accountants_epsilon_of_all_steps_of_all_rounds(shipped) -> None:
    result, _ = shipped
    assert result.steps == 12
    assert result.epsilon == pytest.approx(epsilon([PRIVACY.event(12)], target_delta=DELTA))
    assert result.engine == "fused"


def test_coins_are_committed_to_before_the_first_step(shipped) -> None:
    result, told = shipped
    assert told[0] == result.commitment
    assert [one for one, _ in told[1:]] == [*range(1, 13)]
    assert result.statement == {
        "attack": "updates",
        "canaries": CANARIES,
        "guesses": GUESSES,
        "site": "a",
    }
    opened = commitment_of(
        str(result.opening["coins"]), str(result.opening["salt"]), statement=result.statement
    )
    assert opened == result.commitment


def test_canaries_and_guesses_are_chosen_to_reach_beyond_epsilon() -> None:
    lm = adapted()
    for rounds in (1, 2):
        size = size_for(lm, rounds=rounds)
        claimed = epsilon([PRIVACY.event(6 * rounds)], target_delta=DELTA)
        assert size.reach > size.epsilon == pytest.approx(claimed)
        assert 1 <= size.guesses < size.canaries / 2


def test_a_long_study_is_audited_by_as_many_rounds_as_can_be_refuted() -> None:
    lm = adapted()
    assert auditable_rounds(lm, steps_of(2)) == 2
    most = auditable_rounds(lm, steps_of(6))
    assert 1 <= most < 6
    assert size_for(lm, rounds=most).reach > size_for(lm, rounds=most).epsilon
    # With such a delta no number of right guesses says anything.
    assert auditable_rounds(lm, steps_of(2, delta=0.3)) == 0


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        pytest.param({"canaries": 0}, "canaries: expected 1 to", id="no canary"),
        pytest.param({"canaries": -5}, "canaries: expected 1 to", id="a negative number"),
        pytest.param({"canaries": 10**7}, "canaries: expected 1 to", id="no room"),
        pytest.param({"canaries": 50}, r"50 canaries show at most .* Use at least", id="too few"),
        pytest.param({"canaries": 1500, "guesses": 1501}, "guesses: expected 1 to", id="r > m"),
        pytest.param({"guesses": 0}, "guesses: expected 1 to", id="no guess"),
        pytest.param({"guesses": 20}, "20 guesses .* even if all are right", id="few guesses"),
        pytest.param({"rounds": 500}, "audit fewer rounds", id="an epsilon beyond reach"),
        pytest.param({"rounds": 10**5}, "audit fewer rounds", id="an epsilon beyond accounting"),
    ],
)
def test_audits_that_could_show_nothing_are_refused(wishes, message) -> None:
    with pytest.raises(ParameterError, match=message):
        size_for(adapted(), **wishes)


def test_the_attack_is_as_sure_as_stated() -> None:
    rng = np.random.default_rng(11)
    for _ in range(20):
        joined = rng.random(CANARIES) < 0.5
        log_odds = np.zeros(CANARIES)
        for _ in range(12):
            shares = joined * (rng.random(CANARIES) < 0.25)
            shares = shares + rng.normal(scale=0.25, size=CANARIES)
            log_odds += np.logaddexp(np.log(0.75), np.log(0.25) + (shares - 0.5) / 0.25**2)
        surest = np.sort(np.abs(log_odds))[-GUESSES:]
        assert float((1.0 / (1.0 + np.exp(surest))).sum()) < 0.001
    reach = largest_bound(
        canaries=CANARIES, guesses=GUESSES, delta=DELTA, confidence=CONFIDENCE, wrong=2
    )
    assert reach > epsilon([PRIVACY.event(12)], target_delta=DELTA)
