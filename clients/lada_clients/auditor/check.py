"""The auditor's part of `lada check`: what `lada auditor run` looks at when it starts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Final

from lada_clients.auditor.runner import AuditorSettings, export_folder
from lada_clients.auditor.service import plan_faults
from lada_clients.net.reaching import coordinator_found, proposed_plan
from lada_protocol.evidence.export import PLAN_FILE
from lada_protocol.identity.roster import Roster
from lada_protocol.party_checks import (
    check_writable,
    disk_found,
    identity_found,
    read_plan,
    roster_found,
    state_found,
)
from lada_protocol.party_files import read_roster, read_settings
from lada_protocol.plan import StudyPlan
from lada_protocol.studies import STUDIES
from lada_secure.check.running import (
    Check,
    Found,
    Request,
    RoleChecks,
    fault,
    fine,
    unneeded,
)
from lada_secure.errors import ParameterError

_NAME: Final = "auditor"


class AuditorChecks:
    """The auditor's checks, and what they have read; each file once, in its own check."""

    def __init__(self, file: Path, request: Request) -> None:
        self._file = file
        self._request = request
        self._coordinator_answers = False

    @cached_property
    def settings(self) -> AuditorSettings:
        """`auditor.toml`."""
        return read_settings(self._file, AuditorSettings)

    @cached_property
    def roster(self) -> Roster:
        """As the settings pin it."""
        return read_roster(self.settings.roster, pinned=self.settings.roster_sha256)

    @cached_property
    def plan(self) -> StudyPlan | None:
        """The plan that was named, else what a coordinator that answers proposes now."""
        if self._request.plan is not None:
            return read_plan(self._request.plan)
        if not self._coordinator_answers:
            return None
        return proposed_plan(self.settings, pinned=self.settings.roster_sha256)

    def entries(self) -> tuple[Check, ...]:
        """In the order in which an auditor would stumble over them."""
        return (
            Check(name="settings", run=self._settings),
            Check(name="state", run=self._state, needs=("settings",)),
            Check(name="disk", run=self._disk, needs=("state",)),
            Check(name="roster", run=self._roster, needs=("settings",)),
            Check(name="identity", run=self._identity, needs=("settings",)),
            Check(name="coordinator", run=self._coordinator, needs=("roster", "identity")),
            Check(name="plan.policy", run=self._plan, needs=("settings",)),
            Check(name="export", run=self._export, needs=("settings", "plan.policy")),
        )

    def _settings(self) -> Iterator[Found]:
        settings = self.settings
        yield fine(
            f"party {settings.party}, coordinator at {settings.coordinator}; refuses plans above "
            f"epsilon {settings.epsilon_cap:g} or of fewer than {settings.min_cohort} sites",
            party=settings.party,
        )

    def _state(self) -> Iterator[Found]:
        yield state_found(self.settings, role=_NAME)

    def _disk(self) -> Iterator[Found]:
        yield disk_found(self.settings)

    def _coordinator(self) -> Iterator[Found]:
        for found in coordinator_found(self.settings, self.roster):
            self._coordinator_answers = found.level == "ok"
            yield found

    def _roster(self) -> Iterator[Found]:
        cohort = self.settings.min_cohort
        yield roster_found(self.roster, pinned=True, min_cohort=cohort)

    def _identity(self) -> Iterator[Found]:
        # Where the roster has a fault of its own, the keys are looked at for themselves.
        settings = self.settings
        yield identity_found(
            settings.credentials(), vars(self).get("roster"), folder=settings.identity
        )

    def _plan(self) -> Iterator[Found]:
        plan, settings = self.plan, self.settings
        if plan is None:
            yield unneeded("no --plan is named, and none is proposed")
            return
        against = plan_faults(
            plan, min_cohort=settings.min_cohort, epsilon_cap=settings.epsilon_cap
        )
        for one in against:
            yield fault(f"{one}. This auditor would refuse the plan; ask for another")
        if not against:
            yield fine(f"the settings allow the plan of study {plan.study_id}")

    def _export(self) -> Iterator[Found]:
        folder, plan = self.settings.export_dir, self.plan
        check_writable(folder, key="export_dir")
        if plan is not None:
            folder = export_folder(folder, plan)
        elif (folder / PLAN_FILE).exists():
            kept = read_plan(folder / PLAN_FILE)
            yield fine(
                f"{folder} holds the evidence of study {kept.study_id}; the next one's goes into "
                f"{folder / STUDIES}",
                study=kept.study_id,
            )
            return
        yield fine(f"{folder}: takes the study's evidence", folder=str(folder))


def _checks(file: Path, request: Request) -> Sequence[Check]:
    if request.pool is not None:
        raise ParameterError("--pool: the auditor has no model to ask; leave it out")
    return AuditorChecks(file, request).entries()


ROLE: Final = RoleChecks(role=_NAME, marks=frozenset(("export_dir", "epsilon_cap")), checks=_checks)
