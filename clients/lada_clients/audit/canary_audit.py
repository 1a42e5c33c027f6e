"""The one-run audit of a training run: canaries in, guesses out, a lower bound on epsilon.

Steinke, Nasr, Jagielski 2023 (arXiv 2305.08846), Algorithm 1, with `distil` as the algorithm.
Nothing is released: the run is paid for in a ledger in memory, which only says what the same
steps would cost, and the trained adapters are dropped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Literal, TypeAlias

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lada_clients.audit.canaries import AuditedTrainer, CanaryDirections, CanaryRun
from lada_secure.canonical import Json, sha256_hex
from lada_secure.dpsgd.distillation import StepReport, distil, training_spec
from lada_secure.dpsgd.parameters import DpSgdParameters, TrainerSettings
from lada_secure.errors import ParameterError
from lada_secure.models.adapters import parameter_count
from lada_secure.models.examples import PrivateUnit, RationaleExample
from lada_secure.models.loading import LanguageModel
from lada_secure.privacy.accounting.accountant import epsilon as composed_epsilon
from lada_secure.privacy.empirical import (
    count_confident,
    count_correct,
    epsilon_lower_bound,
    guesses_to_refute,
    largest_bound,
    seal_coins,
)
from lada_secure.privacy.ledger.entries import LedgerIdentity
from lada_secure.privacy.ledger.memory import MemoryLedger
from lada_secure.privacy.ledger.terms import MAX_CAP, BudgetCaps, Reservation

Attack: TypeAlias = Literal["updates", "adapters"]

# Of the canaries that a sharp-eyed attacker could be sure of, this share is guessed.
_GUESSED_SHARE = 0.75
# Fewer guesses make a bound that jumps by chance.
_LEAST_GUESSES = 100
_STUDY = "audit"
_PLAN_HASH = sha256_hex(_STUDY.encode("ascii"))


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditedSteps:
    """What is attacked: every round's DP-SGD under one promise of (epsilon, delta).

    confidence: in (0, 1), of the bound that the audit gives.
    """

    privacy: DpSgdParameters
    rounds: int
    delta: float
    confidence: float = 0.95

    @property
    def count(self) -> int:
        """Steps of all rounds."""
        return self.rounds * self.privacy.steps


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditSize:
    """How many canaries and guesses; fixed before the run.

    epsilon: what the steps cost by the accountant. reach: the bound if every guess were right.
    """

    canaries: int
    guesses: int
    epsilon: float
    reach: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingAudit:
    """Outcome of an audit. It depends on the units' gradients: it is no release.

    Fields have the names of docs/audit-empirically.md.
    bound: epsilon at least, at this confidence. epsilon: what the ledger says of the steps.
    flagged: whether the run did worse than its ledger claims. largest_bound: that this many
    guesses can give. steps: of all rounds.
    noise_seen: of a typical step in clip norms, real gradients included; None for "adapters".
    commitment: hash over coins and statement, told before the run; opening: what it hid.
    """

    attack: Attack
    canaries: int
    guesses: int
    correct: int
    rounds: int
    steps: int
    bound: float
    confidence: float
    largest_bound: float
    epsilon: float
    delta: float
    flagged: bool
    noise_multiplier: float
    noise_seen: float | None
    engine: str
    device: str
    trainable_parameters: int
    statement: dict[str, Json]
    commitment: str
    opening: dict[str, Json]


def audit_size(
    lm: LanguageModel,
    steps: AuditedSteps,
    *,
    canaries: int | None = None,
    guesses: int | None = None,
) -> AuditSize:
    """Choose, or check, how many canaries and guesses; looks at public settings only.

    Without `guesses`, as many as refute the accountant's epsilon with two wrong ones among them.
    Without `canaries`, so many that a trainer without noise would give away enough of them.

    Raises: ParameterError: out of range, more canaries than the model has room for, or an audit
        that could not refute epsilon even if every guess were right.
    """
    needs = _needs(lm, steps)
    if canaries is None and guesses is None:
        if needs.guesses is None:
            raise ParameterError(needs.advice)
        guesses = max(needs.guesses, min(_LEAST_GUESSES, int(needs.room * needs.share)))
    if canaries is None:
        canaries = min(needs.room, math.ceil((guesses or 1) / needs.share))
    if not 1 <= canaries <= needs.room:
        raise ParameterError(
            f"canaries: expected 1 to {needs.room}, for which this model's adapters have room, "
            f"got {canaries}"
        )
    if guesses is None:
        guesses = max(1, int(canaries * needs.share))
    reach = largest_bound(
        canaries=canaries, guesses=guesses, delta=steps.delta, confidence=steps.confidence
    )
    if reach <= needs.epsilon:
        raise ParameterError(
            f"{guesses} guesses about {canaries} canaries show at most epsilon {reach:.3f}, even "
            f"if all are right: never above the claimed {needs.epsilon:.3f}. {needs.advice}"
        )
    return AuditSize(canaries=canaries, guesses=guesses, epsilon=needs.epsilon, reach=reach)


def auditable_rounds(lm: LanguageModel, steps: AuditedSteps) -> int:
    """About the most rounds, up to those of the steps, that an audit can refute; 0 for none.

    Epsilon grows with the rounds, and what an audit can refute is bounded by delta and by the
    model's room for canaries. A defect shows in few rounds as in many.
    """
    rounds = steps.rounds
    while rounds >= 1 and _needs(lm, replace(steps, rounds=rounds)).guesses is None:
        rounds = min(rounds - 1, int(0.8 * rounds))
    return max(rounds, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Needs:
    """What refuting epsilon takes.

    epsilon: what the steps cost by the accountant. share: guesses per canary. room: the most
    canaries that the model has directions for. guesses: None where no number does it, or where
    the model has no room for as many canaries. advice: says so, or how many canaries to use.
    """

    epsilon: float
    share: float
    room: int
    guesses: int | None
    advice: str


def _needs(lm: LanguageModel, steps: AuditedSteps) -> _Needs:
    privacy, room = steps.privacy, CanaryDirections(parameter_count(lm.model), seed=0).room
    claimed = composed_epsilon([privacy.event(steps.count)], target_delta=steps.delta)
    # A canary gives itself away where it has joined and is in at least one step.
    share = _GUESSED_SHARE * 0.5 * (1.0 - (1.0 - privacy.sampling_probability) ** steps.count)
    guesses = None
    if math.isfinite(claimed):
        guesses = guesses_to_refute(
            claimed, delta=steps.delta, canaries_per_guess=1.0 / share, confidence=steps.confidence
        )
    claim = f"epsilon {claimed:.3f} after {steps.count} steps"
    fewer = "audit fewer rounds, whose epsilon is smaller"
    if guesses is None:
        advice = f"No number of canaries refutes {claim} at delta {steps.delta:g}; {fewer}"
    elif (canaries := math.ceil(guesses / share)) > room:
        guesses = None
        advice = (
            f"Refuting {claim} takes {canaries} canaries, and this model's adapters have "
            f"room for {room}; {fewer}"
        )
    else:
        advice = f"Use at least {canaries} canaries, or leave both numbers out"
    return _Needs(epsilon=claimed, share=share, room=room, guesses=guesses, advice=advice)


def audit_training(
    lm: LanguageModel,
    steps: AuditedSteps,
    *,
    units_of: Callable[[int], Sequence[PrivateUnit]],
    pool_of: Callable[[int], Sequence[RationaleExample]],
    settings_of: Callable[[int], TrainerSettings],
    size: AuditSize,
    attack: Attack,
    statement: dict[str, Json],
    announce: Callable[[str], None],
    progress: Callable[[int, int], None],
) -> TrainingAudit:
    """Train on the units and the canaries that the coins let in, then guess the coins.

    Args:
        lm: with adapters; they are trained in place, for nothing: drop the model afterwards.
        units_of: the real ones of a round, perhaps none; called when the round's first steps are
        paid for, with the model as that round's DP-SGD starts from it. pool_of, settings_of: public
        samples and settings of a round. size: of `audit_size`, before anything is trained.
        statement: public facts of the run for the commitment.
        announce: gets the commitment before the first step. progress: steps done, steps in all.
    Guarantee: if `distil` is (epsilon, delta)-DP for all rounds together, `bound` is above epsilon
        with probability at most 1 - confidence.
    Raises: ParameterError: before the first step.
    """
    fixed: dict[str, Json] = {
        **statement,
        "attack": attack,
        "canaries": size.canaries,
        "guesses": size.guesses,
    }
    coins = seal_coins(size.canaries, statement=fixed)
    announce(coins.commitment)
    privacy = steps.privacy
    run = CanaryRun(lm, joined=coins.joined, privacy=privacy, seed=settings_of(0).seed)
    book = _private_ledger(steps.delta)
    for round_id in range(steps.rounds):

        def paid_units(_: Reservation, round_id: int = round_id) -> Sequence[PrivateUnit]:
            return units_of(round_id)

        def report(step: StepReport, before: int = round_id * privacy.steps) -> None:
            progress(before + step.step, steps.count)

        done = distil(
            lm,
            units=paid_units,
            pool=pool_of(round_id),
            privacy=privacy,
            settings=settings_of(round_id),
            book=book,
            spec=training_spec(privacy, study_id=_STUDY, plan_hash=_PLAN_HASH, round_id=round_id),
            progress=report,
            open_trainer=partial(AuditedTrainer, canaries=run),
        )
    if attack == "updates":
        counts = count_confident(run.watcher.log_odds, coins.joined, guesses=size.guesses)
    else:
        counts = count_correct(run.scores_of_adapters(), coins.joined, guesses=size.guesses)
    bound = epsilon_lower_bound(counts, delta=steps.delta, confidence=steps.confidence)
    epsilon = book.epsilon_spent(steps.delta)
    return TrainingAudit(
        attack=attack,
        **asdict(counts),
        rounds=steps.rounds,
        steps=steps.count,
        bound=bound,
        confidence=steps.confidence,
        largest_bound=size.reach,
        epsilon=epsilon,
        delta=steps.delta,
        flagged=bound > epsilon,
        noise_multiplier=privacy.noise_multiplier,
        noise_seen=run.watcher.noise_seen if attack == "updates" else None,
        engine=done.engine,
        device=done.device,
        trainable_parameters=done.trainable_parameters,
        statement=fixed,
        commitment=coins.commitment,
        opening=coins.opening,
    )


def _private_ledger(delta: float) -> MemoryLedger:
    """A ledger with all rules that nobody else sees and that pays for nothing that leaves."""
    book = MemoryLedger(
        identity=LedgerIdentity.new(site=_STUDY, population=_STUDY),
        signing_key=Ed25519PrivateKey.generate(),
        caps=BudgetCaps(target_delta=delta, total_epsilon=MAX_CAP, study_epsilon=MAX_CAP),
        clock=lambda: datetime.now(UTC),
    )
    book.decide(
        "approve",
        study_id=_STUDY,
        plan_hash=_PLAN_HASH,
        expires=datetime.now(UTC) + timedelta(days=365),
        decided_by=_STUDY,
    )
    return book
