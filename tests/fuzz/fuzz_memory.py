"""Whether a process grows over many inputs."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Final

WARM_UP_INPUTS: Final = 1_000
EVERY_INPUTS: Final = 500
MOST_GROWTH_BYTES: Final = 192 << 20


def resident_bytes() -> int:
    """Memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


class Growth:
    """Compares memory with what it was after a warm-up that fills caches and boards."""

    def __init__(self) -> None:
        self._inputs = 0
        self._warm_bytes = 0

    def check(self) -> None:
        """Count one input; look at memory now and then.

        Raises: AssertionError: the process has grown.
        """
        self._inputs += 1
        if self._inputs == WARM_UP_INPUTS:
            self._warm_bytes = resident_bytes()
        if self._inputs <= WARM_UP_INPUTS or self._inputs % EVERY_INPUTS:
            return
        grown = resident_bytes() - self._warm_bytes
        if grown > MOST_GROWTH_BYTES:
            raise AssertionError(
                f"grew by {grown >> 20} MiB over {self._inputs - WARM_UP_INPUTS} inputs"
            )
