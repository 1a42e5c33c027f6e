"""What a check has found, and the report of all of them, for people and for programs."""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, JsonValue

Level: TypeAlias = Literal["ok", "warning", "fault", "skipped"]
FORMAT: Final = "lada-check/1"
# What was skipped says nothing of its own: it rests on a fault, or was not asked for.
_EXIT_STATUS: Final[dict[Level, int]] = {"ok": 0, "skipped": 0, "warning": 1, "fault": 2}
_PLURALS: Final[dict[Level, str]] = {
    "ok": "ok",
    "warning": "warning(s)",
    "fault": "fault(s)",
    "skipped": "skipped",
}


class Finding(BaseModel):
    """One line of a report.

    check: stable name of what was looked at, as "model.folder". message: for people; of a warning
    or a fault also what to do. Never what a private record says. facts: for programs; their names
    depend on the check alone.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    check: str
    level: Level
    message: str
    facts: dict[str, JsonValue] = {}


class CheckReport(BaseModel):
    """All that `lada check` has found in one settings file; its form stays within a `format`.

    role: of the party; empty where the file does not say. level: the worst of all findings.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Annotated[str, Field(pattern=f"^{FORMAT}$")] = FORMAT
    role: str
    file: str
    level: Literal["ok", "warning", "fault"]
    findings: tuple[Finding, ...]

    @property
    def exit_status(self) -> int:
        """0 where all is well, 1 with warnings, 2 with faults."""
        return _EXIT_STATUS[self.level]

    def summary(self) -> str:
        """How many lines of each level there are."""
        counts = dict.fromkeys(_PLURALS, 0)
        for one in self.findings:
            counts[one.level] += 1
        return ", ".join(f"{counts[level]} {word}" for level, word in _PLURALS.items())


def report_of(findings: tuple[Finding, ...], *, role: str, file: str) -> CheckReport:
    """The report of a party's findings."""
    levels = {one.level for one in findings}
    worst: Literal["ok", "warning", "fault"] = "ok"
    if "fault" in levels:
        worst = "fault"
    elif "warning" in levels:
        worst = "warning"
    return CheckReport(role=role, file=file, level=worst, findings=findings)
