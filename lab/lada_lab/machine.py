"""What a result was measured on, for reports that others are to compare with."""

from __future__ import annotations

import os
import platform


def machine() -> tuple[int, str, str]:
    """Usable cores, platform and Python version."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return cores or 1, platform.platform(terse=True), platform.python_version()
