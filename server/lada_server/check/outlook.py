"""`lada server propose --dry-run`: tries every value of a study file, and tells what it would ask.

Weights are not loaded, the pool is not embedded, nothing is written and nobody is spoken to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from lada_secure.check.findings import CheckReport, Finding, report_of
from lada_secure.check.running import Check, Found, Request, fine, run_checks, unneeded
from lada_secure.data.records import pool_bytes
from lada_secure.method.memory import SiteSizes, site_memory
from lada_secure.models.calling_settings import Calling
from lada_secure.models.loading import open_texts
from lada_secure.models.placement import Placement
from lada_secure.models.preflight import largest_sizes
from lada_server.check.reading import CoordinatorReading
from lada_server.check.role import CoordinatorChecks
from lada_server.study.outlook import Outlook, outlook_of, outlook_sentences

FORMAT: Final = "lada-proposal/1"
# What sites set where they set nothing.
_SITE_BATCH_SIZE: Final = 16
_TAKEN_OVER: Final = ("settings", "study", "state", "roster", "pool")


class Asked(BaseModel):
    """What sites would sign for, by its hashes. clusters are made when the study is proposed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str
    roster_sha256: str
    pool_size: int
    pool_sha256: str
    embedder: str
    slm: str


class Proposal(BaseModel):
    """`lada server propose --dry-run --json`; its form stays within a `format`.

    level: the worst of all findings. asked, outlook: null where the plan has a fault.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Annotated[str, Field(pattern=f"^{FORMAT}$")] = FORMAT
    file: str
    level: Literal["ok", "warning", "fault"]
    findings: tuple[Finding, ...]
    asked: Asked | None
    outlook: Outlook | None

    def report(self) -> CheckReport:
        """The findings as `lada check` reports them, with its exit status."""
        return report_of(self.findings, role="coordinator", file=self.file)

    def sentences(self) -> tuple[str, ...]:
        """What each site would be asked, for people; nothing where the plan has a fault."""
        if self.asked is None or self.outlook is None:
            return ()
        return (
            f"Each site would be asked for this, in study {self.outlook.study_id}: "
            f"{self.asked.title}",
            *outlook_sentences(self.outlook),
            f"  pool     {self.asked.pool_size:,} samples, SHA-256 {self.asked.pool_sha256}",
            f"  models   an SLM {self.asked.slm}; embedder {self.asked.embedder}",
            f"  roster   {self.outlook.sites} sites, SHA-256 {self.asked.roster_sha256}",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DryRun:
    """One settings file, tried. slm: folder of a model that a site might have, for its forecast."""

    file: Path
    slm: Path | None
    read: CoordinatorReading
    checks: CoordinatorChecks

    @classmethod
    def of(cls, file: Path, *, slm: Path | None) -> DryRun:
        """Of a `server.toml`; nothing is read yet."""
        read = CoordinatorReading(file, Request())
        return cls(file=file, slm=slm, read=read, checks=CoordinatorChecks(read))

    def entries(self) -> tuple[Check, ...]:
        """What is looked at: the first entries are those of `lada check`."""
        known = {one.name: one for one in self.checks.entries()}
        draft = ("study", "roster", "pool")
        return (
            *(known[name] for name in _TAKEN_OVER),
            Check(name="plan", run=lambda: self.checks.model.draft(), needs=draft),
            Check(name="plan.kept", run=lambda: self.checks.model.kept(), needs=("plan",)),
            known["model.folder"],
            Check(
                name="model.identity",
                run=lambda: self.checks.model.identity(),
                needs=("model.folder",),
            ),
            known["model.place"],
            known["model.memory"],
            Check(name="slm.memory", run=self._slm_memory, needs=("plan",)),
        )

    def _slm_memory(self) -> Iterator[Found]:
        """Of a site's model, without its records: its machine is not this one, so nobody judges.

        Raises: ParameterError: no model folder.
        """
        plan, folder = self.checks.model.drafted, self.slm
        if folder is None or plan is None:
            yield unneeded("name the folder of a model that a site has with --slm to see its part")
            return
        texts = open_texts(folder, name=str(folder), calling=Calling()).with_form(plan.form)
        pool = largest_sizes(texts, self.read.pool)
        bound = plan.privacy.max_records_per_unit
        sizes = SiteSizes(
            batch_size=max(_SITE_BATCH_SIZE, bound),
            records=pool,
            count=plan.privacy.max_units * bound,
            pool=pool,
        )
        forecast = site_memory(plan, folder, Placement().on_this_machine(), sizes)
        what, _ = forecast.largest
        yield fine(
            f"a site with {folder.name} needs about {forecast.working / 1e6:,.0f} MB, at most for "
            f"{what}: with the settings that a site has by default, and records no longer than the "
            "pool's texts",
            working_bytes=forecast.working,
        )

    def gone_through(
        self, *, begun: Callable[[str], None], found: Callable[[Finding], None]
    ) -> Proposal:
        """Go through all of it. begun, found: for a screen."""
        findings = []
        for one in run_checks(self.entries(), quick=True, begun=begun):
            findings.append(one)
            found(one)
        asked, outlook = self._told(findings)
        return Proposal(
            file=str(self.file),
            level=report_of(tuple(findings), role="coordinator", file=str(self.file)).level,
            findings=tuple(findings),
            asked=asked,
            outlook=outlook,
        )

    def _told(self, findings: Iterable[Finding]) -> tuple[Asked | None, Outlook | None]:
        if not any(one.check == "plan" and one.level == "ok" for one in findings):
            return None, None
        plan, roster = self.checks.model.drafted, self.read.roster
        if plan is None:
            return None, None
        asked = Asked(
            title=plan.title,
            roster_sha256=roster.hash,
            pool_size=plan.pool_size,
            pool_sha256=plan.pool_sha256,
            embedder=plan.embedder,
            slm=plan.slm.sentence(),
        )
        size = len(pool_bytes(self.read.pool))
        return asked, outlook_of(plan, sites=len(roster.sites), pool_bytes=size)
