"""Whether a process grows over many inputs."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

WARM_UP_INPUTS: Final = 1_000
EVERY_INPUTS: Final = 500
MOST_GROWTH_BYTES: Final = 192 << 20
# About a hundred bytes each.
MOST_GROWTH_BLOCKS: Final = 1_000_000


def resident_bytes() -> int:
    """Memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


class Growth:
    """Compares memory with what it was after a warm-up that fills caches and boards.

    Of the whole process; of Python's own blocks alone where `beside_fuzzer`. A coverage-guided
    fuzzer keeps some 6 KB for every input itself, 250 MB over a site's 45,000, while the same
    inputs without it leave the process as it was.
    """

    def __init__(self, *, beside_fuzzer: bool = False) -> None:
        self._measure: Callable[[], int] = sys.getallocatedblocks
        self._most, self._unit = MOST_GROWTH_BLOCKS, "blocks"
        if not beside_fuzzer:
            self._measure, self._most, self._unit = resident_bytes, MOST_GROWTH_BYTES, "bytes"
        self._inputs = 0
        self._warm = 0

    def check(self) -> None:
        """Count one input; look at memory now and then.

        Raises: AssertionError: the process has grown.
        """
        self._inputs += 1
        if self._inputs == WARM_UP_INPUTS:
            self._warm = self._measure()
        if self._inputs <= WARM_UP_INPUTS or self._inputs % EVERY_INPUTS:
            return
        grown = self._measure() - self._warm
        if grown > self._most:
            raise AssertionError(
                f"grew by {grown} {self._unit} over {self._inputs - WARM_UP_INPUTS} inputs"
            )
