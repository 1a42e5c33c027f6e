"""What a method must offer for LaDa to choose its samples.

A baseline transfers knowledge between an LLM and SLMs over public pool samples, in its own way.
LaDa decides which samples: `allocator.allocate` picks, the LLM's owner writes checked paths for the
picks, and `rounds.transfer` has the baseline carry the round out: both sides' losses, the
baseline's own selection among the picks, its payload, its distillation loss, its reward. The
rewards go back to LaDa, which learns from them what to pick next. Without LaDa, the picks are the
baseline's own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from torch import Tensor

from lada_lab.baselines.allocator import AllocationState
from lada_secure.allocation.gap import reward
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

    pool_index: int
    row: TokenRow
    top: TopLogits


@dataclass(slots=True, kw_only=True)
class BaselineState:
    """What is remembered of one site between rounds.

    paths: all that were sent to it so far, by pool index. allocation: LaDa's memory of its picks
    and of what they brought.
    """

    paths: dict[int, str] = field(default_factory=dict)
    allocation: AllocationState = field(default_factory=AllocationState)


class Baseline(Protocol):
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
        """What is sent of the picked samples, after the baseline's own selection among them."""
        ...

    def loss(self, learner: LanguageModel, batch: Sequence[Payload]) -> Tensor:
        """The distillation loss of a batch, a scalar with gradients of the learner's adapters."""
        ...

    def reward(self, before: DualLosses, after: DualLosses) -> FloatArray:
        """What training brought per sample, (n,) in [-1, 1]."""
        ...


def exp_loss_reward(before: DualLosses, after: DualLosses) -> FloatArray:
    """LaDa's reward: change of exp(-loss) of the SLM (Guo et al. 2026), (n,) in [-1, 1]."""
    return reward(np.maximum(before.slm, 0.0), np.maximum(after.slm, 0.0))


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
