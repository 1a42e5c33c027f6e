"""The three parties by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fuzz_board import CoordinatorTarget
from fuzz_clients import AuditorTarget, SiteTarget
from fuzz_study import RecordedStudy
from fuzz_targets import Target

TARGETS: dict[str, Callable[[RecordedStudy, Path], Target]] = {
    "coordinator": CoordinatorTarget,
    "auditor": AuditorTarget,
    "site": SiteTarget,
}
