"""Training over several processes of one machine: starting them, leading them, following.

The leader is the process that called `distil`, with the ledger open. Followers hear commands
through a pipe of their own and exchange tensors by gloo on the loopback interface; they hold no
ledger, draw no randomness and write nothing. A follower that dies ends the run: the chunk's
steps are paid for by then, as after any crash.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed

from lada_secure.distillation.adapters import AdapterWeights, load_adapters
from lada_secure.distillation.examples import PathExample, PrivateUnit
from lada_secure.distillation.models import LanguageModel
from lada_secure.distillation.parameters import DpSgdParameters, TrainerSettings
from lada_secure.distillation.ranks import ONE_RANK, GroupRanks, Ranks, lost_ranks_named
from lada_secure.distillation.state import decode_state
from lada_secure.distillation.trainer import Trainer
from lada_secure.errors import LadaError, LocalProtocolError, ParameterError, TransportError

MAX_RANKS = 64
_GOODBYE_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BeginRun:
    """Everything a follower needs to take the leader's steps; `settings.ranks` is not used."""

    adapters: AdapterWeights
    units: tuple[PrivateUnit, ...]
    pool: tuple[PathExample, ...]
    privacy: DpSgdParameters
    settings: TrainerSettings
    binding: str


@dataclass(frozen=True, slots=True)
class TakeStep:
    """One step, together with the leader."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GoOnFrom:
    """A state that was committed before, as `encode_state` wrote it."""

    state: bytes


@dataclass(frozen=True, slots=True)
class EndRun:
    """The run is over; the next one may begin."""


@dataclass(frozen=True, slots=True)
class _Done:
    """A follower's answer to every command, and to being started."""


@dataclass(frozen=True, slots=True)
class _Failed:
    """A follower's last words."""

    message: str


class LeadingRanks(GroupRanks):
    """Rank 0's view; made by `open_ranks`."""

    def __init__(
        self, followers: Sequence[tuple[BaseProcess, Connection]], *, timeout_s: float
    ) -> None:
        super().__init__(rank=0, size=len(followers) + 1)
        self._followers = followers
        self._timeout_s = timeout_s
        # How many answers each follower owes.
        self._owed = [1] * len(followers)
        self._broken = False

    def tell(self, command: object) -> None:
        """See `Ranks.tell`."""
        self.settle()
        for at, (_, pipe) in enumerate(self._followers):
            self._owed[at] += 1
            try:
                pipe.send(command)
            except OSError as error:
                raise self._lost(at) from error

    def settle(self) -> None:
        """See `Ranks.settle`."""
        if self._broken:
            raise LocalProtocolError(
                "these training processes were ended after an error; open new ones"
            )
        for at, (_, pipe) in enumerate(self._followers):
            while self._owed[at]:
                try:
                    if not pipe.poll(self._timeout_s):
                        raise TransportError(
                            f"training rank {at + 1} did not answer in {self._timeout_s:.0f} s"
                        )
                    answer = pipe.recv()
                except (EOFError, OSError) as error:
                    raise self._lost(at) from error
                if isinstance(answer, _Failed):
                    raise TransportError(f"training rank {at + 1} failed: {answer.message}")
                self._owed[at] -= 1

    def end_run(self) -> None:
        """See `Ranks.end_run`."""
        if self._broken:
            return
        if any(self._owed):
            self.end()
        else:
            self.tell(EndRun())
            self.settle()

    def end(self) -> None:
        """End all followers, whatever they are doing."""
        idle = not self._broken and not any(self._owed)
        self._broken = True
        for process, pipe in self._followers:
            if not idle:
                process.kill()
            pipe.close()
        for process, _ in self._followers:
            process.join(_GOODBYE_S)
            if process.is_alive():
                process.kill()
                process.join()

    def sum_to_first(self, values: torch.Tensor) -> torch.Tensor:
        """See `Ranks.sum_to_first`; tells a dead follower's last words."""
        try:
            return super().sum_to_first(values)
        except TransportError as error:
            raise self._explained(error) from error

    def from_first(self, values: torch.Tensor) -> torch.Tensor:
        """See `Ranks.from_first`; tells a dead follower's last words."""
        try:
            return super().from_first(values)
        except TransportError as error:
            raise self._explained(error) from error

    def _explained(self, error: TransportError) -> TransportError:
        for at, (process, pipe) in enumerate(self._followers):
            try:
                answer = pipe.recv() if pipe.poll(0.5) else None
            except (EOFError, OSError):
                return self._lost(at)
            if isinstance(answer, _Failed):
                return TransportError(f"training rank {at + 1} failed: {answer.message}")
            if not process.is_alive():
                return self._lost(at)
        return error

    def _lost(self, at: int) -> TransportError:
        process = self._followers[at][0]
        process.join(1.0)
        return TransportError(
            f"training rank {at + 1} ended with exit status {process.exitcode}; the steps of this "
            "chunk are paid for and lost, start the run again (was there enough memory?)"
        )


@contextmanager
def open_ranks(
    count: int, *, build: Callable[[], LanguageModel], timeout_s: float = 1800.0
) -> Iterator[Ranks]:
    """Start count - 1 further processes for `TrainerSettings.ranks`; they end with the context.

    Any number of runs may use them, one after the other.

    Args:
        count: 1 to 64; 1 starts nothing. With CUDA, rank r takes device r modulo their number.
        build: called in every follower; makes the model that the leader trains, with adapters
            attached the same way. Its weights come from the leader when a run begins. It is
            pickled, so it must be a function of a module or a partial of one.
        timeout_s: how long a rank waits for another one before the run ends.
    Raises: ParameterError: count out of range, or a process group is open in this process.
        TransportError: a follower could not start.
    """
    if not 1 <= count <= MAX_RANKS:
        raise ParameterError(f"training processes: expected 1 to {MAX_RANKS}, got {count}")
    if count == 1:
        yield ONE_RANK
        return
    if torch.distributed.is_initialized():
        raise ParameterError("a torch process group is open already; close it first")
    context = multiprocessing.get_context("spawn")
    followers: list[tuple[BaseProcess, Connection]] = []
    # A folder of this user alone, instead of a port that anybody on the machine could dial.
    with tempfile.TemporaryDirectory(prefix="lada-ranks-") as folder:
        meeting_place = str(Path(folder) / "store")
        for rank in range(1, count):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_follow,
                args=(theirs, rank, count, meeting_place, build, timeout_s),
                daemon=True,
            )
            process.start()
            theirs.close()
            followers.append((process, ours))
        leader = LeadingRanks(followers, timeout_s=timeout_s)
        try:
            # Followers answer once their model stands, so that a failure there is not a timeout.
            leader.settle()
            leader.tell(_Join())
            _join(rank=0, size=count, meeting_place=meeting_place, timeout_s=timeout_s)
            leader.settle()
            yield leader
        finally:
            leader.end()
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()


@dataclass(frozen=True, slots=True)
class _Join:
    """Meet the others."""


def _join(*, rank: int, size: int, meeting_place: str, timeout_s: float) -> None:
    """Open the process group, listening on the loopback interface only."""
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), None)
    before = os.environ.get("GLOO_SOCKET_IFNAME")
    if loopback is not None:
        # Sums without noise go through these sockets: they must not be on a network.
        os.environ["GLOO_SOCKET_IFNAME"] = loopback
    try:
        with lost_ranks_named():
            torch.distributed.init_process_group(
                "gloo",
                init_method=f"file://{meeting_place}",
                rank=rank,
                world_size=size,
                timeout=timedelta(seconds=timeout_s),
            )
    finally:
        if before is not None:
            os.environ["GLOO_SOCKET_IFNAME"] = before
        else:
            os.environ.pop("GLOO_SOCKET_IFNAME", None)


def _follow(
    pipe: Connection,
    rank: int,
    size: int,
    meeting_place: str,
    build: Callable[[], LanguageModel],
    timeout_s: float,
) -> None:
    """Body of a follower: does what the leader says until the pipe closes."""
    # An interrupt from the keyboard reaches the whole group; the leader decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ranks = GroupRanks(rank=rank, size=size)
    try:
        follower = _Follower(build(), ranks)
        pipe.send(_Done())
        while True:
            try:
                command: Any = pipe.recv()
            except EOFError:
                return
            if isinstance(command, _Join):
                _join(rank=rank, size=size, meeting_place=meeting_place, timeout_s=timeout_s)
            else:
                follower.do(command)
            pipe.send(_Done())
    except (LadaError, RuntimeError, MemoryError) as error:
        try:
            pipe.send(_Failed(f"{type(error).__name__}: {error}"))
        except OSError:
            # The leader is gone as well; there is nobody left to tell.
            return


class _Follower:
    """What one follower holds between commands."""

    def __init__(self, lm: LanguageModel, ranks: GroupRanks) -> None:
        self._lm = lm
        self._ranks = ranks
        self._trainer: Trainer | None = None
        self._binding = ""

    def do(self, command: object) -> None:
        match command:
            case BeginRun():
                self._begin(command)
            case TakeStep():
                self._running().step()
            case GoOnFrom(state=raw):
                self._running().restore(decode_state(raw, binding=self._binding))
            case EndRun():
                self._running().close()
                self._trainer = None
            case _:
                raise LocalProtocolError(f"training rank: unknown command {command!r}")

    def _begin(self, run: BeginRun) -> None:
        settings = replace(run.settings, ranks=self._ranks)
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        if self._trainer is not None:
            self._trainer.close()
        load_adapters(self._lm, run.adapters)
        self._trainer = Trainer(
            self._lm, units=run.units, pool=run.pool, privacy=run.privacy, settings=settings
        )
        self._binding = run.binding

    def _running(self) -> Trainer:
        if self._trainer is None:
            raise LocalProtocolError("training rank: told to work before a run began")
        return self._trainer
