"""What a distillation baseline must offer for the method to choose its samples.

A host transfers knowledge between an LLM and SLMs over public pool samples, in its own way. The
method decides which samples and which rationales pass; `rounds.transfer` has the host carry the
training out: both sides' losses, the host's own selection, its payload, its distillation loss.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from lada_secure.arrays import BoolArray, FloatArray, float_vector
from lada_secure.data.records import PoolSample
from lada_secure.errors import ParameterError
from lada_secure.models.examples import TokenRow
from lada_secure.models.loading import LanguageModel


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DualLosses:
    """Cross-entropies of the same texts under both models, (n,) nats per token each, >= 0.

    Each model counts tokens of its own tokenizer.
    """

    slm: FloatArray
    llm: FloatArray

    def __post_init__(self) -> None:
        """Check shapes. Raises: ParameterError: lengths that differ."""
        count = len(float_vector("losses of the SLM", self.slm))
        float_vector("losses of the LLM", self.llm, length=count)

    @property
    def llm_is_better(self) -> BoolArray:
        """Where the LLM has something to teach, (n,)."""
        better: BoolArray = self.llm < self.slm
        return better


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TopLogits:
    """Per target token, a teacher's k likeliest tokens, in the tokens of whoever learns.

    tokens: (t, k) int64. probabilities: (t, k) float32, rows sum to 1; entries of probability 0
    are padding.
    """

    tokens: Tensor
    probabilities: Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Payload:
    """What a teacher sends for one sample after selection: `row` in the learner's tokens."""

    place: int
    row: TokenRow
    top: TopLogits


class Host(Protocol):
    """One method with one LLM; an instance serves all sites of a study."""

    @property
    def name(self) -> str:
        """How conditions call it."""
        ...

    @property
    def pool(self) -> Sequence[PoolSample]:
        """The public samples to choose from."""
        ...

    def losses(self, slm: LanguageModel, paths: Mapping[int, str]) -> DualLosses:
        """Both sides' losses on paths by pool index, in the mapping's order."""
        ...

    def payload(
        self, slm: LanguageModel, paths: Mapping[int, str], losses: DualLosses
    ) -> tuple[Payload, ...]:
        """What is sent of the picked samples, after the host's own selection among them."""
        ...

    def loss(self, learner: LanguageModel, batch: Sequence[Payload]) -> Tensor:
        """The distillation loss of a batch, a scalar with gradients of the learner's adapters."""
        ...


def check_pool(pool: Sequence[PoolSample]) -> tuple[PoolSample, ...]:
    """The pool as it is, if samples can be told apart and paths be checked.

    Raises: ParameterError: empty, an id that comes twice, or a sample without a gold answer.
    """
    if not pool:
        raise ParameterError("pool: expected at least one sample, got none")
    number, count = Counter(one.sample_id for one in pool).most_common(1)[0]
    if count > 1:
        raise ParameterError(
            f"pool: sample_id {number!r} comes {count} times; give every sample an id of its own"
        )
    for one in pool:
        if not one.answer.strip():
            raise ParameterError(
                f"pool: sample {one.sample_id!r} has no gold answer, so that no path of the LLM "
                "could be checked; add the answer or take the sample out"
            )
    return tuple(pool)
