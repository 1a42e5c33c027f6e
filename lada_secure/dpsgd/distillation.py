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
from typing import NoReturn, TypeAlias

import torch

from lada_secure.canonical import canonical_json, sha256_hex
from lada_secure.dpsgd.parameters import (
    DpSgdParameters,
    SignalToNoiseEstimate,
    TrainerSettings,
    estimate_signal_to_noise,
)
from lada_secure.dpsgd.state import TrainingState, decode_state, encode_state
from lada_secure.dpsgd.trainer import Trainer, TrainerFactory
from lada_secure.errors import LedgerError
from lada_secure.models.adapters import (
    AdapterWeights,
    adapter_weights,
    adapters_kept,
    load_adapters,
)
from lada_secure.models.examples import PrivateUnit, RationaleExample
from lada_secure.models.loading import LanguageModel
from lada_secure.privacy.ledger.book import LedgerBook
from lada_secure.privacy.ledger.terms import (
    DISCRETE_GAUSSIAN,
    DP_SGD,
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
    study_epsilon: what the reservation of this chunk of steps says that the study has spent after
    it. seconds_left: of this run, at its mean pace so far.
    """

    step: int
    steps: int
    public_loss: float | None
    study_epsilon: float
    seconds_left: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Distilled:
    """Result of `distil`: adapters that may leave, and for the site what was trained and where.

    public_losses: mean pool loss of every step.
    """

    adapters: Released[AdapterWeights]
    engine: str
    device: str
    trainable_parameters: int
    public_losses: tuple[float | None, ...]


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
        count = sum(parameter.numel() for parameter in trainer.parameters)
        try:
            if announce is not None:
                announce(estimate_signal_to_noise(privacy, parameters=count))
            run = _Run(
                lm=lm,
                trainer=trainer,
                first=first,
                binding=_binding(first, pool, privacy, settings),
                privacy=privacy,
                chunk_steps=settings.steps_per_reservation,
                units=units,
                progress=progress,
            )
            released = run.train(book, _chunks(spec, privacy, settings))
        finally:
            trainer.close()
        return Distilled(
            # The model holds exactly the released state now: its adapters are a function of it.
            adapters=post_process(released, lambda _: adapter_weights(lm), label="adapters"),
            engine=trainer.engine.name,
            device=str(trainer.device),
            trainable_parameters=count,
            public_losses=tuple(trainer.public_losses),
        )


def released_adapters(
    lm: LanguageModel,
    *,
    privacy: DpSgdParameters,
    settings: TrainerSettings,
    book: LedgerBook,
    spec: ReleaseSpec,
) -> Released[AdapterWeights]:
    """The model's adapters as the release of the finished run that made them; nothing is spent.

    The caller ensures that `lm` holds what `distil` left in it with the same arguments, or what was
    made of that and of public data alone.

    Args: as given to `distil`.
    Returns: paid by the run's last chunk of steps, whose output the adapters are part of.
    Raises: LedgerError: that chunk was never committed.
    """
    last = _chunks(spec, privacy, settings)[-1]

    def missing(_: object = None) -> NoReturn:
        raise LedgerError(
            f"round {spec.round_id}: {spec.purpose} is not finished, there are no adapters to use"
        )

    if book.stored_output(last.key) is None:
        # Asking the ledger for it would reserve, that is spend, once more.
        missing()
    stored = book.release(last, compute=missing, encode=missing, decode=bytes)
    return post_process(stored, lambda _: adapter_weights(lm), label="adapters")


@dataclass(slots=True, kw_only=True)
class _Run:
    """One training, chunk by chunk. first: the adapters before it."""

    lm: LanguageModel
    trainer: Trainer
    first: AdapterWeights
    binding: str
    privacy: DpSgdParameters
    chunk_steps: int
    units: PaidUnits
    progress: Callable[[StepReport], None] | None
    started_s: float = field(default_factory=time.monotonic)
    taken: int = 0
    committed_loss: float | None = None

    def train(self, book: LedgerBook, chunks: Sequence[ReleaseSpec]) -> Released[TrainingState]:
        """Pay for, take and commit all steps; what is committed is taken from the store."""
        trainer = self.trainer
        released: list[Released[TrainingState]] = []
        for chunk in chunks:
            start = trainer.steps_done
            state = book.release(
                chunk,
                compute=partial(self._take_steps, start + self.chunk_steps),
                encode=encode_state,
                decode=partial(decode_state, binding=self.binding),
            )
            released.append(state)
            if state.value.step != trainer.steps_done:
                trainer.restore(state.value)
                logger.info(
                    "training chunk %d was committed before; going on after it", chunk.chunk
                )
            trainer.check_going_well(start)
            losses = [loss for loss in state.value.public_losses[start:] if loss is not None]
            self.committed_loss = statistics.fmean(losses) if losses else None
        return released[-1]

    def _take_steps(self, last: int, paid: Reservation) -> TrainingState:
        if not self.taken:
            self._read_units(paid)
        while self.trainer.steps_done < min(last, self.privacy.steps):
            self.trainer.step()
            self.taken += 1
            done = self.trainer.steps_done
            pace_s = (time.monotonic() - self.started_s) / self.taken
            if self.progress is not None:
                self.progress(
                    StepReport(
                        step=done,
                        steps=self.privacy.steps,
                        public_loss=self.committed_loss,
                        study_epsilon=paid.entry.study_epsilon_after,
                        seconds_left=pace_s * (self.privacy.steps - done),
                    )
                )
        return self.trainer.state(self.binding)

    def _read_units(self, paid: Reservation) -> None:
        """Read the private units under the reference model, wherever a resumed run stands."""
        with adapters_kept(self.lm):
            load_adapters(self.lm, self.first)
            self.trainer.take_units(self.units(paid))


def _chunks(
    spec: ReleaseSpec, privacy: DpSgdParameters, settings: TrainerSettings
) -> list[ReleaseSpec]:
    """The releases of a run, in order: as many steps each as are paid for at a time."""
    size = settings.steps_per_reservation
    return [
        replace(
            spec,
            chunk=chunk,
            mechanism=DP_SGD,
            event=privacy.event(min(size, privacy.steps - start)),
            parameters=_ledger_parameters(privacy),
        )
        for chunk, start in enumerate(range(0, privacy.steps, size))
    ]


def _ledger_parameters(privacy: DpSgdParameters) -> MechanismParameters:
    return {
        "noise": DISCRETE_GAUSSIAN,
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
) -> ReleaseSpec:
    """The release that `distil` makes: all its steps as one event; `distil` cuts it into chunks.

    Args: unit: the records' column that names the privacy unit, as in the plan.

    Raises: ParameterError: a name or hash of the wrong form.
    """
    return ReleaseSpec(
        study_id=study_id,
        plan_hash=plan_hash,
        round_id=round_id,
        purpose="training",
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
    names = ("pool_batch_size", "private_weight", "learning_rate", "steps_per_reservation", "seed")
    optimiser = {name: getattr(settings, name) for name in names}
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
