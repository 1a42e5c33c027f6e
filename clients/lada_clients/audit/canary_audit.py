"""The one-run audit of a training run: canaries in, guesses out, a lower bound on epsilon.

Steinke, Nasr, Jagielski 2023 (arXiv 2305.08846), Algorithm 1, with `distil` as the algorithm.
Nothing is released: the run is paid for in a ledger in memory, which only says what the same
steps would cost, and the trained adapters are dropped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final, Literal, TypeAlias

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lada_clients.audit.canaries import CanaryRun, canary_room
from lada_secure.canonical import Json, sha256_hex
from lada_secure.dpsgd.distillation import Distilled, StepReport, distil, training_spec
from lada_secure.dpsgd.parameters import DpSgdParameters, TrainerSettings
from lada_secure.errors import ParameterError
from lada_secure.models.examples import PrivateUnit, RationaleExample
from lada_secure.models.loading import LanguageModel
from lada_secure.privacy.accounting.accountant import epsilon as composed_epsilon
from lada_secure.privacy.empirical import (
    GuessCounts,
    count_confident,
    count_correct,
    epsilon_lower_bound,
    guesses_to_refute,
    largest_bound,
    seal_coins,
)
from lada_secure.privacy.ledger.book import MAX_CAP, BudgetCaps, Reservation
from lada_secure.privacy.ledger.entries import LedgerIdentity
from lada_secure.privacy.ledger.memory import MemoryLedger

Attack: TypeAlias = Literal["updates", "adapters"]
ATTACKS: Final[tuple[Attack, ...]] = ("updates", "adapters")

# Of the canaries that a sharp-eyed attacker could be sure of, this share is guessed.
_GUESSED_SHARE = 0.75
# Fewer guesses make a bound that jumps by chance.
_LEAST_GUESSES = 100
_STUDY = "audit"
# Any tokenizer has tokens for digits; no model ever reads them.
_TEXT = RationaleExample(example_id="canary", prompt="1", path="1", rejected=None)


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

    bound: epsilon at least, at `confidence`. epsilon: what the ledger says of the same steps.
    reach: largest bound that this many guesses can give.
    noise_seen: of a typical step in clip norms, real gradients included; None for "adapters".
    commitment: hash over coins and statement, told before the run; opening: what it hid.
    """

    attack: Attack
    counts: GuessCounts
    confidence: float
    bound: float
    epsilon: float
    delta: float
    reach: float
    steps: int
    noise_seen: float | None
    engine: str
    device: str
    trainable_parameters: int
    non_finite_units: int
    statement: Json
    commitment: str
    opening: dict[str, Json]

    @property
    def flagged(self) -> bool:
        """Whether the run did worse than its ledger claims."""
        return self.bound > self.epsilon


def audit_size(
    lm: LanguageModel,
    *,
    privacy: DpSgdParameters,
    rounds: int,
    delta: float,
    confidence: float = 0.95,
    canaries: int | None = None,
    guesses: int | None = None,
) -> AuditSize:
    """Choose, or check, how many canaries and guesses; looks at public settings only.

    Without `guesses`, as many as refute the accountant's epsilon with two wrong ones among them.
    Without `canaries`, so many that a trainer without noise would give away enough of them.

    Raises: ParameterError: out of range, more canaries than the model has room for, or an audit
        that could not refute epsilon even if every guess were right.
    """
    needs = _needs(lm, privacy=privacy, rounds=rounds, delta=delta, confidence=confidence)
    if canaries is None and guesses is None:
        if not needs.fits:
            raise ParameterError(needs.advice)
        guesses = max(needs.guesses or 1, min(_LEAST_GUESSES, int(needs.room * needs.share)))
    if canaries is None:
        canaries = min(needs.room, math.ceil((guesses or 1) / needs.share))
    if not 1 <= canaries <= needs.room:
        raise ParameterError(
            f"canaries: expected 1 to {needs.room}, for which this model's adapters have room, "
            f"got {canaries}"
        )
    if guesses is None:
        guesses = max(1, int(canaries * needs.share))
    if not 1 <= guesses <= canaries:
        raise ParameterError(f"guesses: expected 1 to {canaries} (the canaries), got {guesses}")
    reach = largest_bound(canaries=canaries, guesses=guesses, delta=delta, confidence=confidence)
    if reach <= needs.epsilon:
        raise ParameterError(
            f"{guesses} guesses about {canaries} canaries show at most epsilon {reach:.3f}, even "
            f"if all are right: never above the claimed {needs.epsilon:.3f}. {needs.advice}"
        )
    return AuditSize(canaries=canaries, guesses=guesses, epsilon=needs.epsilon, reach=reach)


def auditable_rounds(
    lm: LanguageModel,
    *,
    privacy: DpSgdParameters,
    rounds: int,
    delta: float,
    confidence: float = 0.95,
) -> int:
    """About the most rounds, up to `rounds`, whose epsilon an audit can refute; 0 for none.

    Epsilon grows with the rounds, and what an audit can refute is bounded by delta and by the
    model's room for canaries. A defect shows in few rounds as in many.
    """
    while rounds >= 1:
        if _needs(lm, privacy=privacy, rounds=rounds, delta=delta, confidence=confidence).fits:
            return rounds
        rounds = min(rounds - 1, int(0.8 * rounds))
    return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Needs:
    """What refuting epsilon takes; `guesses` is None where no number of canaries does it.

    share: guesses per canary. room: the most canaries that the model has directions for.
    """

    epsilon: float
    steps: int
    delta: float
    share: float
    room: int
    guesses: int | None

    @property
    def canaries(self) -> int | None:
        return None if self.guesses is None else math.ceil(self.guesses / self.share)

    @property
    def fits(self) -> bool:
        return self.canaries is not None and self.canaries <= self.room

    @property
    def advice(self) -> str:
        claim = f"epsilon {self.epsilon:.3f} after {self.steps} steps"
        if self.canaries is None:
            return (
                f"No number of canaries refutes {claim} at delta {self.delta:g}; audit fewer "
                "rounds, whose epsilon is smaller"
            )
        if self.canaries > self.room:
            return (
                f"Refuting {claim} takes {self.canaries} canaries, and this model's adapters have "
                f"room for {self.room}; audit fewer rounds, whose epsilon is smaller"
            )
        return f"Use at least {self.canaries} canaries, or leave both numbers out"


def _needs(
    lm: LanguageModel, *, privacy: DpSgdParameters, rounds: int, delta: float, confidence: float
) -> _Needs:
    steps = rounds * privacy.steps
    claimed = composed_epsilon([privacy.event(steps)], target_delta=delta)
    # A canary gives itself away where it has joined and is in at least one step.
    share = _GUESSED_SHARE * 0.5 * (1.0 - (1.0 - privacy.sampling_probability) ** steps)
    guesses = None
    if math.isfinite(claimed):
        guesses = guesses_to_refute(
            claimed, delta=delta, canaries_per_guess=1.0 / share, confidence=confidence
        )
    return _Needs(
        epsilon=claimed,
        steps=steps,
        delta=delta,
        share=share,
        room=canary_room(lm),
        guesses=guesses,
    )


def audit_training(
    lm: LanguageModel,
    *,
    units_of: Callable[[int], Sequence[PrivateUnit]],
    pool_of: Callable[[int], Sequence[RationaleExample]],
    privacy: DpSgdParameters,
    settings_of: Callable[[int], TrainerSettings],
    rounds: int,
    delta: float,
    size: AuditSize,
    attack: Attack = "updates",
    confidence: float = 0.95,
    statement: dict[str, Json] | None = None,
    announce: Callable[[str], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
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
        **(statement or {}),
        "attack": attack,
        "canaries": size.canaries,
        "guesses": size.guesses,
    }
    coins = seal_coins(size.canaries, statement=fixed)
    if announce is not None:
        announce(coins.commitment)
    run = CanaryRun(lm, joined=coins.joined, privacy=privacy, text=_TEXT, seed=settings_of(0).seed)
    book = _private_ledger(delta)
    results: list[Distilled] = []
    for round_id in range(rounds):

        def report(step: StepReport, before: int = round_id * privacy.steps) -> None:
            if progress is not None:
                progress(before + step.step, rounds * privacy.steps)

        results.append(
            distil(
                lm,
                units=partial(_units_of_round, units_of, round_id),
                pool=pool_of(round_id),
                privacy=privacy,
                settings=settings_of(round_id),
                book=book,
                spec=training_spec(
                    privacy,
                    study_id=_STUDY,
                    plan_hash=_plan_hash(),
                    round_id=round_id,
                ),
                progress=report,
                open_trainer=run.open_trainer,
            )
        )
    if attack == "updates":
        counts = count_confident(run.log_odds_of_updates(), coins.joined, guesses=size.guesses)
    else:
        counts = count_correct(run.scores_of_adapters(), coins.joined, guesses=size.guesses)
    log = results[-1].log
    return TrainingAudit(
        attack=attack,
        counts=counts,
        confidence=confidence,
        bound=epsilon_lower_bound(counts, delta=delta, confidence=confidence),
        epsilon=book.epsilon_spent(delta),
        delta=delta,
        reach=size.reach,
        steps=rounds * privacy.steps,
        noise_seen=run.noise_seen if attack == "updates" else None,
        engine=log.engine,
        device=log.device,
        trainable_parameters=log.trainable_parameters,
        non_finite_units=sum(one.log.non_finite_units for one in results),
        statement=fixed,
        commitment=coins.commitment,
        opening=coins.opening,
    )


def _units_of_round(
    units_of: Callable[[int], Sequence[PrivateUnit]], round_id: int, _paid: Reservation
) -> Sequence[PrivateUnit]:
    return units_of(round_id)


def _plan_hash() -> str:
    return sha256_hex(_STUDY.encode("ascii"))


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
        plan_hash=_plan_hash(),
        expires=datetime.now(UTC) + timedelta(days=365),
        decided_by=_STUDY,
    )
    return book
