"""Gradients of single units by what is trained of a model, and a public sketch of them.

The sketch adds entries of a gradient into few buckets under random signs (a random matrix with one
entry of plus or minus 1 in each row; Weinberger et al., ICML 2009). It keeps inner products up to
about 1 / sqrt(buckets) of the norms, and is fixed by a public seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lada_secure.arrays import FloatArray
from lada_secure.dpsgd.engine import open_engine
from lada_secure.dpsgd.gradient import GradientSource
from lada_secure.models.examples import EncodedExample
from lada_secure.models.loading import LanguageModel
from lada_secure.models.loss import LossSettings
from lada_secure.models.rationale_scoring import RationaleScorer

# Examples of a batch: gradients are as many times as large as what is trained.
_BATCH_BYTES = 2**28
_FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sketch:
    """A public random projection from d entries to `buckets`."""

    buckets: int
    _bucket: Tensor
    _sign: Tensor

    @classmethod
    def drawn(cls, entries: int, *, buckets: int, seed: int) -> Sketch:
        """Args: entries: d. seed: public, the same at every party."""
        generator = np.random.default_rng([seed, entries, buckets])
        return cls(
            buckets=buckets,
            _bucket=torch.from_numpy(generator.integers(buckets, size=entries)),
            _sign=torch.from_numpy(generator.choice([-1.0, 1.0], size=entries)).float(),
        )

    def __call__(self, gradients: Tensor) -> Tensor:
        """(m, d) -> (m, buckets) float64."""
        found = torch.zeros((len(gradients), self.buckets), dtype=torch.float32)
        return found.index_add_(1, self._bucket, gradients.cpu() * self._sign).double()


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitGradients:
    """Gradients of a model as it is; made by `unit_gradients`. entries: what is trained, d."""

    entries: int
    _source: GradientSource
    _batch_size: int

    def of_each(
        self, units: Sequence[Sequence[EncodedExample]], look: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """What is made of each unit's gradient, in their order; cross-entropy, unclipped.

        Args: units: the examples of each, at least one. look: (m, d) float32 to m rows.
        """
        order = sorted(range(len(units)), key=lambda at: _length(units[at]))
        parts, places = [], []
        for batch in self._batches(units, order):
            gradients = self._source.unit_gradients([units[at] for at in batch])
            parts.append(look(torch.cat([one.flatten(1) for one in gradients], dim=1)))
            places += batch
        found = torch.cat(parts)
        back = torch.empty(len(places), dtype=torch.int64)
        back[torch.tensor(places)] = torch.arange(len(places))
        return found[back]

    def _batches(
        self, units: Sequence[Sequence[EncodedExample]], order: Sequence[int]
    ) -> Iterator[list[int]]:
        most = max(1, min(self._batch_size, _BATCH_BYTES // (_FLOAT_BYTES * self.entries)))
        batch: list[int] = []
        examples = 0
        for at in order:
            examples += len(units[at])
            if batch and examples > most:
                yield batch
                batch, examples = [], len(units[at])
            batch.append(at)
        if batch:
            yield batch


@contextmanager
def unit_gradients(lm: LanguageModel, *, batch_size: int) -> Iterator[UnitGradients]:
    """Open a model's gradients by unit; its adapters must not be changed meanwhile."""
    engine = open_engine(lm.model, "auto")
    try:
        yield UnitGradients(
            entries=sum(one.numel() for one in engine.parameters),
            _source=GradientSource(
                engine=engine,
                scorer=RationaleScorer(lm.model, device=lm.device),
                loss=LossSettings(contrastive_weight=0.0),
                physical_batch_size=batch_size,
            ),
            _batch_size=batch_size,
        )
    finally:
        engine.close()


def unit_rows(rows: Tensor) -> Tensor:
    """Rows scaled to norm 1; a row of zeros, or one that is not finite, becomes zeros."""
    norms = rows.norm(dim=1, keepdim=True)
    fine = torch.isfinite(norms) & (norms > 0.0)
    return torch.where(fine, rows / torch.where(fine, norms, 1.0), 0.0)


def _length(unit: Sequence[EncodedExample]) -> int:
    return max(len(example.path.tokens) for example in unit)


def as_array(rows: Tensor) -> FloatArray:
    """A tensor as float64, for what is not torch."""
    return rows.double().cpu().numpy()
