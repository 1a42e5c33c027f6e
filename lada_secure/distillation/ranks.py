"""What a training step needs of other processes that share its work: exact sums and one voice.

Rank 0 leads: it draws the batch, adds the noise, holds the ledger and says what every rank does
next. The other ranks compute clipped sums of whole privacy units, nothing else of consequence.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Protocol

import torch
import torch.distributed
from torch import Tensor

from lada_secure.errors import ParameterError, TransportError


class Ranks(Protocol):
    """Processes that take the steps of one training run together; this one is number `rank`."""

    @property
    def rank(self) -> int:
        """This process, from 0."""

    @property
    def size(self) -> int:
        """How many there are."""

    def tell(self, command: object) -> None:
        """Rank 0 only: have all other ranks start on a command."""

    def settle(self) -> None:
        """Rank 0 only: wait until all other ranks are done with what they were told.

        Raises: TransportError: one failed or died; its own words are in the message.
        """

    def end_run(self) -> None:
        """Rank 0 only: leave the run; ranks that are stuck in the middle of a step are ended."""

    def sum_to_first(self, values: Tensor) -> Tensor:
        """Sum over ranks, at rank 0; elsewhere what comes back means nothing.

        Args: values: one shape and type on all ranks, on the CPU; int64 sums are exact.
        Raises: TransportError: a rank died.
        """

    def from_first(self, values: Tensor) -> Tensor:
        """Rank 0's values, on every rank. Args and errors as `sum_to_first`."""


@dataclass(frozen=True, slots=True)
class OneRank:
    """A single process: nothing to agree on."""

    rank: int = 0
    size: int = 1

    def tell(self, command: object) -> None:
        """Nobody is there to be told."""

    def settle(self) -> None:
        """Nobody to wait for."""

    def end_run(self) -> None:
        """Nobody to send away."""

    def sum_to_first(self, values: Tensor) -> Tensor:
        """The values themselves."""
        return values

    def from_first(self, values: Tensor) -> Tensor:
        """The values themselves."""
        return values


ONE_RANK: Final = OneRank()


class GroupRanks:
    """Tensor exchange over torch's default process group (gloo, CPU tensors).

    Gradients of adapters are small and noise is made on the CPU, so sums travel through CPU
    memory whatever the device; one code path then serves CPUs, GPUs, and two ranks on one GPU.
    """

    def __init__(self, *, rank: int, size: int) -> None:
        self.rank = rank
        self.size = size

    def tell(self, command: object) -> None:
        """Raises: ParameterError: only rank 0 leads."""
        raise ParameterError(f"training rank {self.rank} was asked to lead; only rank 0 does")

    def settle(self) -> None:
        """As `tell`."""
        self.tell(None)

    def end_run(self) -> None:
        """As `tell`."""
        self.tell(None)

    def sum_to_first(self, values: Tensor) -> Tensor:
        """See `Ranks.sum_to_first`."""
        with lost_ranks_named():
            torch.distributed.reduce(values, 0)
        return values

    def from_first(self, values: Tensor) -> Tensor:
        """See `Ranks.from_first`."""
        with lost_ranks_named():
            torch.distributed.broadcast(values, 0)
        return values


@contextmanager
def lost_ranks_named() -> Iterator[None]:
    """Turn the process group's errors into ours."""
    try:
        yield
    except RuntimeError as error:
        raise TransportError(
            f"a training process died or does not answer ({str(error)[:200]}); the steps of this "
            "chunk are paid for and lost, start the run again"
        ) from error
