"""How much memory a set of process groups uses, where the system says so (Linux)."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

_PROC = Path("/proc")


def group_memory_bytes(groups: Iterable[int]) -> int | None:
    """Sum of the proportional set sizes of all processes in these groups.

    Pages that several processes share count once. None where /proc does not tell.
    """
    wanted = set(groups)
    if not _PROC.is_dir():
        return None
    total = 0
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            total += _process_bytes(entry, wanted)
    return total


def _process_bytes(entry: Path, groups: set[int]) -> int:
    # A process may end between any two of these lines; it then uses no memory.
    try:
        if os.getpgid(int(entry.name)) not in groups:
            return 0
        for line in (entry / "smaps_rollup").read_text(encoding="ascii").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        return 0
    return 0
