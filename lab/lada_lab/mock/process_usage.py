"""What one running process has used so far, where the system says so (Linux)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Largest resident memory so far, and processor time with that of ended children."""

    peak_bytes: int
    cpu_s: float


def process_usage(process: int) -> Usage | None:
    """The usage of a process; None where it has ended or the system does not tell."""
    folder = Path("/proc") / str(process)
    try:
        status = (folder / "status").read_text(encoding="ascii", errors="replace")
        stat = (folder / "stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    peaks = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    if not peaks:
        return None
    # After the name, which may hold spaces: utime, stime, cutime and cstime are fields 14 to 17.
    fields = stat.rpartition(")")[2].split()
    ticks = sum(int(one) for one in fields[11:15])
    return Usage(peak_bytes=int(peaks[0]) * 1024, cpu_s=ticks / os.sysconf("SC_CLK_TCK"))
