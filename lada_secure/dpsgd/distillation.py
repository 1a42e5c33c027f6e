"""Distillation as a release: steps paid for in the ledger before they are taken, and resumed.

`distil` is the way in; one step's arithmetic is `trainer.Trainer`.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TypeAlias

import torch

from lada_secure.canonical import canonical_json, sha256_hex
from lada_secure.dpsgd.parameters import DpSgdParameters, TrainerSettings
from lada_secure.dpsgd.signal_to_noise import (
    SignalToNoiseEstimate,
    TimeLeft,
    estimate_signal_to_noise,
)
from lada_secure.dpsgd.state import TrainingState, decode_state, encode_state
from lada_secure.dpsgd.trainer import Trainer, TrainerFactory
from lada_secure.errors import ParameterError
from lada_secure.models.adapters import AdapterWeights, adapter_weights, load_adapters
from lada_secure.models.examples import PrivateUnit, RationaleExample
from lada_secure.models.loading import LanguageModel
from lada_secure.privacy.ledger.book import (
    DP_SGD,
    LedgerBook,
    MechanismParameters,
    ReleaseSpec,
    Reservation,
)
from lada_secure.privacy.released import Released, post_process

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """Progress after a step; holds nothing that depends on private records beyond what is paid.

    step: from 1. public_loss: mean over the pool samples of the newest committed steps, None before
    the first of them and without public samples: that of a step which is taken again after a crash
    would be a second look at noised weights that were paid for once.
    epsilon, study_epsilon: what the reservation of this chunk of steps says is spent after it, over
    all studies and in this one. seconds_left: of this run, at the pace of the latest steps.
    """

    step: int
    steps: int
    public_loss: float | None
    epsilon: float
    study_epsilon: float
    seconds_left: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingLog:
    """What happened, for the site's own eyes.

    `non_finite_units` counts unit gradients that were zeroed since the last resume, and
    `left_out_units` those that could not be computed. They depend on private records without
    noise: show them at the site, never send them.
    `physical_batch_size` is smaller than the setting where a batch did not fit into memory.
    """

    engine: str
    device: str
    trainable_parameters: int
    public_losses: tuple[float | None, ...]
    resumed_at_step: int
    non_finite_units: int
    left_out_units: int
    non_finite_public_steps: int
    physical_batch_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Distilled:
    """Result of `distil`: adapters that may leave, and a log that may not."""

    adapters: Released[AdapterWeights]
    log: TrainingLog


PaidUnits: TypeAlias = Callable[[Reservation], Sequence[PrivateUnit]]


def distil(
    lm: LanguageModel,
    *,
    units: PaidUnits,
    pool: Sequence[RationaleExample],
    privacy: DpSgdParameters,
    settings: TrainerSettings,
    book: LedgerBook,
    spec: ReleaseSpec,
    progress: Callable[[StepReport], None] | None = None,
    open_trainer: TrainerFactory = Trainer,
    announce: Callable[[SignalToNoiseEstimate], None] | None = None,
) -> Distilled:
    """Train the model's adapters in place on private units and pool samples, and release them.

    Steps are paid for in chunks of `steps_per_reservation`, each before its first step, and each
    chunk's result is the committed output of its reservation. A run that was interrupted and is
    started again with the same arguments takes committed chunks from the ledger's store, and takes
    the steps of the chunk that was not committed again, with fresh randomness, under the
    reservation that paid for them: nothing of the first try has left.

    Args:
        lm: with adapters (`attach_adapters`); its present weights are the reference model.
        units: bounded privacy units, perhaps none; called with the reservation of the first chunk
        that is computed, and not at all where every chunk's output is stored. The model has the
        reference's weights then, also in a resumed run. pool: public samples with paths; may be
        empty.
        privacy: the guarantee. settings: everything else.
        book: the site's ledger. spec: of `training_spec`; its mechanism, event, parameters and
        chunk are set here for every chunk of steps.
        progress: called after every step that is taken.
        announce: called once with what would be trained, before anything is spent.
        open_trainer: takes the steps; another one than `Trainer` only to audit it (`canaries`).
    Guarantees: adding or removing one unit changes the released adapters' distribution by at most
    what `privacy.event(privacy.steps)` costs (add/remove adjacency). No record is read before the
    steps that read it are paid for, and nothing that a record holds ends the run.
    Raises: ParameterError: before anything is spent; it never depends on private units.
    PrivacyBudgetExceeded, LedgerError: from the ledger, before the chunk's first step.
    TrainingFailed: the last chunk's weights or public losses are not finite, before the next chunk
    is paid for.
    """
    with _threads(settings.threads):
        first = adapter_weights(lm)
        trainer = open_trainer(lm, pool=pool, privacy=privacy, settings=settings)
        try:
            if announce is not None:
                count = sum(one.numel() for one in trainer.parameters)
                announce(estimate_signal_to_noise(privacy, parameters=count))
            run = _Run(
                lm=lm,
                trainer=trainer,
                first=first,
                binding=_binding(first, pool, privacy, settings),
                privacy=privacy,
                units=units,
                progress=progress,
            )
            return run.train(book, spec, chunk_steps=settings.steps_per_reservation)
        finally:
            trainer.close()


@dataclass(slots=True, kw_only=True)
class _Run:
    """One training, chunk by chunk. first: the adapters before it."""

    lm: LanguageModel
    trainer: Trainer
    first: AdapterWeights
    binding: str
    privacy: DpSgdParameters
    units: PaidUnits
    progress: Callable[[StepReport], None] | None
    pace: TimeLeft = field(default_factory=lambda: TimeLeft(started_s=time.monotonic()))
    committed_loss: float | None = None

    def train(self, book: LedgerBook, spec: ReleaseSpec, *, chunk_steps: int) -> Distilled:
        """Pay for, take and commit all steps; what is committed is taken from the store."""
        trainer, privacy = self.trainer, self.privacy
        released: Released[TrainingState] | None = None
        resumed_at = 0
        for chunk, start in enumerate(range(0, privacy.steps, chunk_steps)):
            steps = min(chunk_steps, privacy.steps - start)
            released = book.release(
                _chunk_spec(spec, privacy, chunk=chunk, steps=steps),
                compute=partial(self._take_steps, steps),
                encode=encode_state,
                decode=partial(decode_state, binding=self.binding),
                after=() if released is None else (released,),
            )
            if released.value.step != trainer.steps_done:
                trainer.restore(released.value)
                resumed_at = trainer.steps_done
                logger.info("training chunk %d was committed before; going on after it", chunk)
            trainer.check_going_well(start)
            losses = [one for one in released.value.public_losses[start:] if one is not None]
            self.committed_loss = statistics.fmean(losses) if losses else None
        if released is None:
            raise ParameterError(f"steps: expected at least 1, got {privacy.steps}")
        # The model holds exactly the released state now, so its adapters are a function of it.
        adapters = post_process(released, lambda _: adapter_weights(self.lm), label="adapters")
        return Distilled(adapters=adapters, log=self._log(resumed_at))

    def _take_steps(self, steps: int, paid: Reservation) -> TrainingState:
        if not self.trainer.has_units:
            self._read_units(paid)
        for _ in range(steps):
            self.trainer.step()
            left = self.privacy.steps - self.trainer.steps_done
            if self.progress is not None:
                self.progress(
                    StepReport(
                        step=self.trainer.steps_done,
                        steps=self.privacy.steps,
                        public_loss=self.committed_loss,
                        epsilon=paid.entry.epsilon_after,
                        study_epsilon=paid.entry.study_epsilon_after,
                        seconds_left=self.pace.after_step(time.monotonic(), steps_left=left),
                    )
                )
        return self.trainer.state(self.binding)

    def _read_units(self, paid: Reservation) -> None:
        """Read the private units under the reference model, wherever a resumed run stands."""
        present = adapter_weights(self.lm)
        if present == self.first:
            self.trainer.take_units(self.units(paid))
            return
        load_adapters(self.lm, self.first)
        try:
            self.trainer.take_units(self.units(paid))
        finally:
            load_adapters(self.lm, present)

    def _log(self, resumed_at: int) -> TrainingLog:
        trainer = self.trainer
        return TrainingLog(
            engine=trainer.engine.name,
            device=str(trainer.device),
            trainable_parameters=sum(one.numel() for one in trainer.parameters),
            public_losses=tuple(trainer.public_losses),
            resumed_at_step=resumed_at,
            non_finite_units=trainer.non_finite_units,
            left_out_units=trainer.left_out_units,
            non_finite_public_steps=trainer.non_finite_public_steps,
            physical_batch_size=trainer.source.physical_batch_size,
        )


def _chunk_spec(
    spec: ReleaseSpec, privacy: DpSgdParameters, *, chunk: int, steps: int
) -> ReleaseSpec:
    return replace(
        spec,
        chunk=chunk,
        mechanism=DP_SGD,
        event=privacy.event(steps),
        parameters=_ledger_parameters(privacy),
    )


def _ledger_parameters(privacy: DpSgdParameters) -> MechanismParameters:
    return {
        "noise": privacy.noise,
        "l2_clip_norm": float(privacy.l2_clip_norm),
        "expected_units": float(privacy.expected_units),
    }


def training_spec(
    privacy: DpSgdParameters,
    *,
    study_id: str,
    plan_hash: str,
    round_id: int,
    unit: str = "unit",
    purpose: str = "training",
) -> ReleaseSpec:
    """The release that `distil` makes: all its steps as one event; `distil` cuts it into chunks.

    Args: unit: the records' column that names the privacy unit, as in the plan.

    Raises: ParameterError: a name or hash of the wrong form.
    """
    return ReleaseSpec(
        study_id=study_id,
        plan_hash=plan_hash,
        round_id=round_id,
        purpose=purpose,
        mechanism=DP_SGD,
        event=privacy.event(privacy.steps),
        parameters=_ledger_parameters(privacy),
        unit=unit,
    )


def _binding(
    first: AdapterWeights,
    pool: Sequence[RationaleExample],
    privacy: DpSgdParameters,
    settings: TrainerSettings,
) -> str:
    """Hash of what a stored state must agree with; device, engine and batch size may change."""
    optimiser = {
        name: getattr(settings, name)
        for name in (
            "pool_batch_size",
            "private_weight",
            "learning_rate",
            "weight_decay",
            "schedule",
            "steps_per_reservation",
            "seed",
        )
    }
    return sha256_hex(
        canonical_json(
            {
                "first_weights": first.sha256,
                "pool": [asdict(one) for one in pool],
                "privacy": asdict(privacy),
                "settings": {**optimiser, "loss": asdict(settings.loss)},
            }
        )
    )


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
