"""The adapters that a finished training run released, taken up again after a restart."""

from __future__ import annotations

from dataclasses import replace

from lada_secure.dpsgd.parameters import DpSgdParameters, TrainerSettings
from lada_secure.errors import LedgerError
from lada_secure.models.adapters import AdapterWeights, adapter_weights
from lada_secure.models.loading import LanguageModel
from lada_secure.privacy.ledger.book import LedgerBook
from lada_secure.privacy.ledger.terms import ReleaseSpec
from lada_secure.privacy.released import Released, post_process


def released_adapters(
    lm: LanguageModel,
    *,
    privacy: DpSgdParameters,
    settings: TrainerSettings,
    book: LedgerBook,
    spec: ReleaseSpec,
) -> Released[AdapterWeights]:
    """The model's adapters as the release of the run that made them; nothing is spent.

    The caller ensures that `lm` holds what `distil` left in it with the same arguments, or what was
    made of that and of public data alone.

    Args: as given to `distil`.
    Returns: paid by the run's last chunk of steps, whose output the adapters are part of.
    Raises: LedgerError: that chunk was never committed.
    """
    chunks = range(0, privacy.steps, settings.steps_per_reservation)
    last = replace(spec, chunk=len(chunks) - 1, event=privacy.event(privacy.steps - chunks[-1]))

    def missing(_: object = None) -> bytes:
        raise LedgerError(
            f"round {spec.round_id}: {spec.purpose} is not finished, there are no adapters to use"
        )

    if book.stored_output(last.key) is None:
        # Asking the ledger for it would reserve, that is spend, once more.
        missing()
    stored = book.release(last, compute=missing, encode=_same, decode=_same)
    return post_process(stored, lambda _: adapter_weights(lm), label="adapters")


def _same(raw: bytes) -> bytes:
    return raw
