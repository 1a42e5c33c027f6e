"""A site's list: what `lada site run` looks at before it promises anything.

Further checks are further entries; each calls what the run itself calls. Checks of the model are in
`model`, which takes seconds to import: a fault of the settings should not wait for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lada_clients.site.check.ledger import ledger_findings
from lada_clients.site.check.reading import SiteReading
from lada_clients.site.gates.policy import plan_faults
from lada_protocol.party_checks import disk_found, identity_found, roster_found, state_found
from lada_secure.check.running import Check, Found, Request, RoleChecks, fault, fine, unneeded, warn
from lada_secure.method.mechanisms import plan_inconsistencies
from lada_secure.privacy.accounting.planning import delta_warnings

if TYPE_CHECKING:
    from lada_clients.site.check.model import SiteModelChecks

_NAME: Final = "site"


class SiteChecks:
    """One site's checks."""

    def __init__(self, read: SiteReading) -> None:
        self._read = read

    @cached_property
    def model(self) -> SiteModelChecks:
        """Checks of the model."""
        from lada_clients.site.check.model import SiteModelChecks

        return SiteModelChecks(self._read)

    def entries(self) -> tuple[Check, ...]:
        """In the order in which a site would stumble over them; what takes long comes last."""
        trained = ("model.answers", "model.adapters")
        loaded, answering = ("model.load",), ("model.answers", "pool")
        return (
            Check(name="settings", run=self._settings),
            Check(name="policy", run=self._policy, needs=("settings",)),
            Check(name="state", run=self._state, needs=("settings",)),
            Check(name="disk", run=self._disk, needs=("state",)),
            Check(name="roster", run=self._roster, needs=("policy",)),
            Check(name="identity", run=self._identity, needs=("settings",)),
            Check(name="coordinator", run=self._coordinator, needs=("roster", "identity")),
            Check(name="records", run=self._records, needs=("policy",)),
            Check(name="pool", run=self._pool),
            Check(name="plan.read", run=self._plan_read, needs=("settings",)),
            Check(name="plan.policy", run=self._plan, needs=("plan.read", "roster")),
            Check(name="ledger", run=self._ledger, needs=("policy", "state")),
            Check(name="embedder", run=lambda: self.model.embedder(), needs=("settings",)),
            Check(name="model.folder", run=lambda: self.model.folder(), needs=("settings",)),
            Check(
                name="model.identity",
                run=lambda: self.model.identity(),
                needs=("policy", "model.folder"),
            ),
            Check(name="model.place", run=lambda: self.model.place(), needs=("model.folder",)),
            Check(name="model.memory", run=lambda: self.model.memory(), needs=("model.place",)),
            Check(
                name="model.load", run=lambda: self.model.of_model.loaded(), needs=("model.memory",)
            ),
            Check(
                name="model.tokenizer", run=lambda: self.model.of_model.tokenizer(), needs=loaded
            ),
            Check(name="model.style", run=lambda: self.model.of_model.style(), needs=loaded),
            Check(name="model.answers", run=lambda: self.model.of_model.answers(), needs=loaded),
            Check(name="model.adapters", run=lambda: self.model.adapters(), needs=loaded),
            Check(name="model.engine", run=lambda: self.model.engine(), needs=trained),
            Check(name="plan.sizes", run=lambda: self.model.sizes(), needs=("plan.read", *loaded)),
            Check(
                name="records.length",
                run=lambda: self.model.lengths(),
                needs=("records", "pool", *loaded),
            ),
            Check(
                name="probe.styles",
                run=lambda: self.model.of_model.probe_styles(),
                needs=answering,
                asks=True,
            ),
            Check(
                name="probe.forms",
                run=lambda: self.model.of_model.probe_forms(),
                needs=answering,
                asks=True,
            ),
        )

    def _settings(self) -> Iterator[Found]:
        party, coordinator = self._read.settings.party, self._read.settings.coordinator
        yield fine(f"party {party}, coordinator at {coordinator}", party=party)

    def _policy(self) -> Iterator[Found]:
        policy = self._read.policy
        yield fine(
            f"{self._read.settings.policy}: epsilon at most {policy.epsilon_cap_per_study:g} per "
            f"study and {policy.epsilon_cap_total:g} in all for {policy.population}, at delta "
            f"{policy.target_delta:g}",
            population=policy.population,
        )
        if policy.epsilon_cap_total < policy.epsilon_cap_per_study:
            yield warn(
                f"epsilon_cap_total {policy.epsilon_cap_total:g} is below epsilon_cap_per_study "
                f"{policy.epsilon_cap_per_study:g}, so the total alone bounds a study; say which "
                "is meant"
            )

    def _state(self) -> Iterator[Found]:
        yield state_found(self._read.settings, role=_NAME)

    def _disk(self) -> Iterator[Found]:
        yield disk_found(self._read.settings, work=self._read.settings.work)

    def _roster(self) -> Iterator[Found]:
        policy = self._read.policy
        yield roster_found(self._read.roster, pinned=True, min_cohort=policy.min_cohort)

    def _identity(self) -> Iterator[Found]:
        # Where the roster has a fault of its own, the keys are looked at for themselves.
        yield identity_found(
            self._read.credentials, self._read.known_roster, folder=self._read.settings.identity
        )

    def _coordinator(self) -> Iterator[Found]:
        # Imported here: the libraries of the network take a while, and a refusal should not.
        from lada_clients.net.reaching import coordinator_found

        for found in coordinator_found(self._read.settings, self._read.roster):
            self._read.coordinator_answers = found.level == "ok"
            yield found

    def _ledger(self) -> Iterator[Found]:
        yield from ledger_findings(self._read)

    def _records(self) -> Iterator[Found]:
        records, held_out = self._read.files.records, self._read.files.held_out
        units = len({one.unit for one in records.records})
        tested = 0 if held_out is None else len(held_out.records)
        yield fine(
            f"{records.name}: {len(records.records)} records of {units} units, {tested} held out",
            records=len(records.records),
            units=units,
            held_out=tested,
        )
        policy = self._read.policy
        for said in delta_warnings(target_delta=policy.target_delta, units=units):
            yield warn(f"{self._read.settings.policy}: {said}")

    def _pool(self) -> Iterator[Found]:
        named, pool = self._read.request.pool, self._read.pool
        if pool:
            where = named or "the pool of the study that is proposed now"
            yield fine(f"{where}: {len(pool)} samples", samples=len(pool))
        else:
            yield unneeded(
                "no --pool is named, and none is posted; built-in public questions are asked"
            )

    def _plan_read(self) -> Iterator[Found]:
        plan = self._read.plan
        if plan is None:
            yield unneeded(
                "no --plan is named and no single one is on disk; the policy alone counts"
            )
        else:
            proposed = self._read.coordinator_answers and plan is self._read.proposed
            yield fine(
                f"study {plan.study_id}{', as it is proposed now' if proposed else ''}: "
                f'{plan.rounds} rounds, asked in "{plan.answer_form}"',
                study=plan.study_id,
                plan_sha256=plan.hash,
            )

    def _plan(self) -> Iterator[Found]:
        plan = self._read.plan
        if plan is None:
            yield unneeded("there is no plan yet")
            return
        now = datetime.now(UTC)
        against = plan_inconsistencies(plan)
        against += plan_faults(plan, self._read.policy, roster=self._read.roster, now=now)
        for one in against:
            yield fault(f"{one}. This site would refuse the plan; ask the coordinator for another")
        if not against:
            yield fine("the policy allows the plan")


def _checks(file: Path, request: Request) -> Sequence[Check]:
    return SiteChecks(SiteReading(file, request)).entries()


ROLE: Final = RoleChecks(role=_NAME, marks=frozenset(("policy", "records")), checks=_checks)
