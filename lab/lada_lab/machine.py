"""The machine that a result was measured on, and what processes use of it."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import psutil

SAMPLE_S: Final = 1.0
# A look walks the page tables of every process while it waits: seldom where that takes long.
_LOOK_SHARE: Final = 0.02


def machine() -> tuple[int, str, str]:
    """Usable cores, platform and Python version."""
    cores = len(psutil.Process().cpu_affinity() or ()) if psutil.LINUX else psutil.cpu_count()
    return cores or 1, platform.platform(terse=True), platform.python_version()


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Resident memory now, and processor time so far with that of ended children."""

    resident_bytes: int
    cpu_s: float


def process_usage(process_id: int) -> Usage | None:
    """The usage of a process; None where it has ended."""
    try:
        process = psutil.Process(process_id)
        cpu_s = sum(process.cpu_times()[:4])
        return Usage(resident_bytes=process.memory_info().rss, cpu_s=cpu_s)
    except psutil.Error:
        return None


def group_memory_bytes(groups: Iterable[int]) -> int | None:
    """Sum of the proportional set sizes of all processes in these groups.

    Pages that several processes share count once. None where the system does not tell (not Linux).
    """
    if not psutil.LINUX:
        return None
    wanted, total = set(groups), 0
    for process in psutil.process_iter():
        # A process may end at any moment; it then uses no memory.
        with contextlib.suppress(psutil.Error, OSError):
            if os.getpgid(process.pid) in wanted:
                total += process.memory_full_info().pss
    return total


@dataclass(slots=True)
class PeakMemory:
    """The most that groups of processes have used together, as far as was looked."""

    bytes: int | None = None
    _next_s: float = field(default=float("-inf"), init=False)

    def sample(self, groups: Iterable[int]) -> None:
        """Look, but at most every `SAMPLE_S`, and for at most 2% of the time."""
        began_s = time.monotonic()
        if began_s >= self._next_s:
            used = group_memory_bytes(groups)
            ended_s = time.monotonic()
            self._next_s = began_s + max(SAMPLE_S, (ended_s - began_s) / _LOOK_SHARE)
            if used is not None:
                self.bytes = max(used, self.bytes or 0)
