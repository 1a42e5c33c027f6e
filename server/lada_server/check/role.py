"""The coordinator's list: what `lada server run` looks at before it proposes a study.

Further checks are further entries; each calls what the run itself calls. Checks of the LLM are in
`model`, which takes seconds to import: a fault of the settings should not wait for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lada_protocol.party_checks import disk_found, identity_found, roster_found, state_found
from lada_secure.check.running import Check, Found, Request, RoleChecks, fine
from lada_secure.errors import ParameterError
from lada_server.check.reading import CoordinatorReading

if TYPE_CHECKING:
    from lada_server.check.model import LlmChecks

_NAME: Final = "coordinator"


class CoordinatorChecks:
    """The coordinator's checks."""

    def __init__(self, read: CoordinatorReading) -> None:
        self._read = read

    @cached_property
    def model(self) -> LlmChecks:
        """Checks of the LLM and of what needs one."""
        from lada_server.check.model import LlmChecks

        return LlmChecks(self._read)

    def entries(self) -> tuple[Check, ...]:
        """In the order in which a coordinator would stumble over them; slow ones come last."""
        loaded, answering = ("model.load",), ("model.answers", "pool")
        return (
            Check(name="settings", run=self._settings),
            Check(name="study", run=self._study, needs=("settings",)),
            Check(name="state", run=self._state, needs=("settings",)),
            Check(name="disk", run=self._disk, needs=("state",)),
            Check(name="database", run=self._database, needs=("state", "study")),
            Check(name="port", run=self._port, needs=("disk",)),
            Check(name="roster", run=self._roster, needs=("settings",)),
            Check(name="identity", run=self._identity, needs=("settings",)),
            Check(name="pool", run=self._pool, needs=("settings",)),
            Check(name="embedder", run=lambda: self.model.embedder(), needs=("study",)),
            Check(
                name="plan",
                run=lambda: self.model.plan(),
                needs=("study", "roster", "pool", "embedder"),
            ),
            Check(name="model.folder", run=lambda: self.model.folder(), needs=("settings",)),
            Check(
                name="model.server",
                run=lambda: self.model.server(),
                needs=("settings", "study"),
            ),
            Check(name="model.place", run=lambda: self.model.place(), needs=("model.folder",)),
            Check(name="model.memory", run=lambda: self.model.memory(), needs=("model.place",)),
            Check(
                name="model.load",
                run=lambda: self.model.of_model.loaded(),
                needs=("study", "model.memory", "model.server"),
            ),
            Check(
                name="model.tokenizer",
                run=lambda: self.model.of_model.tokenizer(),
                needs=("pool", *loaded),
            ),
            Check(name="model.style", run=lambda: self.model.of_model.style(), needs=loaded),
            Check(name="model.answers", run=lambda: self.model.of_model.answers(), needs=loaded),
            Check(name="plan.sizes", run=lambda: self.model.sizes(), needs=loaded),
            Check(name="plan.uplink", run=lambda: self.model.uplink(), needs=loaded),
            Check(name="pool.length", run=lambda: self.model.lengths(), needs=("pool", *loaded)),
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
        party = self._read.settings.party
        yield fine(f"party {party}, listens on {self._read.settings.listen}", party=party)

    def _study(self) -> Iterator[Found]:
        study = self._read.study
        yield fine(
            f"{self._read.settings.study}: study {study.study_id}, {study.rounds} rounds, asked in "
            f'"{study.answer_form}"',
            study=study.study_id,
        )

    def _state(self) -> Iterator[Found]:
        yield state_found(self._read.settings, role=_NAME)

    def _disk(self) -> Iterator[Found]:
        yield disk_found(self._read.settings)

    def _database(self) -> Iterator[Found]:
        from lada_server.check.places import database_found
        from lada_server.study.places import settings_of_study

        yield database_found(settings_of_study(self._read.settings, self._read.study.study_id))

    def _port(self) -> Iterator[Found]:
        from lada_server.check.places import port_findings

        yield from port_findings(self._read.settings)

    def _roster(self) -> Iterator[Found]:
        yield roster_found(self._read.roster, pinned=False)

    def _identity(self) -> Iterator[Found]:
        # Where the roster has a fault of its own, the keys are looked at for themselves.
        settings = self._read.settings
        yield identity_found(
            settings.credentials(), self._read.known_roster, folder=settings.identity
        )

    def _pool(self) -> Iterator[Found]:
        yield fine(
            f"{self._read.settings.pool}: {len(self._read.pool)} samples",
            samples=len(self._read.pool),
        )


def _checks(file: Path, request: Request) -> Sequence[Check]:
    named = [name for name in ("plan", "pool") if getattr(request, name) is not None]
    if named:
        raise ParameterError(
            f"--{named[0]}: the coordinator's settings name study and pool themselves; leave it out"
        )
    return CoordinatorChecks(CoordinatorReading(file, request)).entries()


ROLE: Final = RoleChecks(role=_NAME, marks=frozenset(("listen", "llm", "study")), checks=_checks)
