"""Sites and a coordinator without models around a real auditor, driven by the round logic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from protocol_world import (
    Cast,
    MemoryBoard,
    make_cast,
    make_ledger,
    make_participant,
    make_plan,
)
from simulated_coordinator import SimulatedCoordinator
from simulated_site import SimulatedSite, owes

from lada_clients.auditor.ledgers import KnownEntries
from lada_clients.auditor.runner import write_export
from lada_clients.auditor.service import Auditor
from lada_protocol.kinds import Kind
from lada_protocol.plan import StudyPlan
from lada_protocol.rounds.auditor import next_auditor_task
from lada_protocol.rounds.index import Attempt
from lada_protocol.rounds.tasks import Done, Post, Wait
from lada_protocol.wire.envelope import Envelope
from lada_protocol.wire.messages import FaultBody, parse_body
from lada_secure.method.plan import (
    STATISTICS,
)


@dataclass(slots=True, kw_only=True)
class World:
    """One study with everybody in it."""

    cast: Cast
    plan: StudyPlan
    board: MemoryBoard
    coordinator: SimulatedCoordinator
    auditor: Auditor
    sites: dict[str, SimulatedSite]

    def auditor_step(self) -> object:
        """Let the real auditor carry out one task."""
        me = self.auditor.participant
        me.sync()
        task = next_auditor_task(me.index)
        if not isinstance(task, Wait | Done):
            self.auditor.loop.carry_out(task)
        return task

    def step_all(self) -> bool:
        """One step of everybody; whether anything was done."""
        before = len(self.board.rows)
        self.coordinator.step()
        self.auditor_step()
        for site in self.sites.values():
            site.step()
        return len(self.board.rows) > before

    def run(self, until: Callable[[World], bool] | None = None, *, steps: int = 400) -> None:
        """Step until the condition holds, or nobody has anything to do any more."""
        for _ in range(steps):
            if until is not None and until(self):
                return
            if not self.step_all():
                return
        raise AssertionError("the study did not come to rest")

    def to_sum(self, purpose: str = STATISTICS, round_id: int = 0) -> Post:
        """Run until the coordinator is about to post the sum of this round and purpose."""

        def ready() -> Post | None:
            task = self.coordinator.next()
            fits = owes(task, Kind.SUM) and (
                (task.attempt.round_id, task.attempt.purpose) == (round_id, purpose)
            )
            return task if fits else None

        for _ in range(400):
            task = ready()
            if task is not None:
                self.settle_auditor()
                return task
            if not self.step_all():
                break
        raise AssertionError(f"no sum is due: {self.coordinator.next()}")

    def settle_auditor(self) -> None:
        """Let the auditor do everything that it can do now."""
        while not isinstance(self.auditor_step(), Wait | Done):
            pass

    def admit_all(self) -> None:
        """Let every site accept the plan, and the auditor admit it."""
        for site in self.sites.values():
            site.step()
        self.settle_auditor()

    def answer(self, attempt: Attempt) -> Envelope:
        """What the auditor said to the sum of an attempt, after letting it work."""
        self.settle_auditor()
        index = self.auditor.participant.index
        for kind in (Kind.OPENED, Kind.OPENING_REFUSED):
            found = index.at(kind, attempt, sender="auditor")
            if found is not None:
                return found
        raise AssertionError("the auditor has not answered")


def make_world(
    folder: Path,
    *,
    sites: tuple[str, ...] = ("site-a", "site-b", "site-c"),
    cast_: Cast | None = None,
    plan: StudyPlan | None = None,
) -> World:
    """A study whose plan is on the board and that everybody has joined."""
    cast_ = cast_ or make_cast(sites)
    plan = plan or make_plan()
    board = MemoryBoard(cast_.roster)
    coordinator = SimulatedCoordinator(
        roster=cast_.roster,
        key=cast_.keys["coordinator"],
        certificate=cast_.certificates["coordinator"],
        plan=plan,
        board=board,
    )
    coordinator.step()
    auditor = make_auditor(cast_, board, folder / "auditor")
    joined = {}
    for name in sites:
        me = make_participant(cast_, board, name, folder / name)
        me.join(wait_s=5.0)
        joined[name] = SimulatedSite(me=me, book=make_ledger(cast_, name))
    return World(
        cast=cast_, plan=plan, board=board, coordinator=coordinator, auditor=auditor, sites=joined
    )


def make_auditor(cast_: Cast, board: MemoryBoard, folder: Path, *, min_cohort: int = 3) -> Auditor:
    """A real auditor that has joined; called again with the same folder it is a restart."""
    me = make_participant(cast_, board, "auditor", folder)
    me.join(wait_s=5.0)
    return Auditor(
        participant=me,
        state_dir=folder,
        known_entries=KnownEntries(folder=me.open_folder()),
        min_cohort=min_cohort,
        epsilon_cap=8.0,
    )


def refusal(world: World, attempt: Attempt) -> FaultBody:
    """The auditor's refusal of a sum."""
    answer = world.answer(attempt)
    assert answer.kind is Kind.OPENING_REFUSED, f"opened instead: {answer!r}"
    assert answer.header.payload_bytes == 0
    return parse_body(answer, FaultBody)


def notes(world: World) -> list[str]:
    """What the auditor has noted as opened."""
    folder = world.auditor.opening.notes
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def never_opened(world: World) -> None:
    """Nothing was opened: no note, which is written before the key is used."""
    assert notes(world) == []
    assert not world.coordinator.index.attempts(Kind.OPENED, round_id=0, purpose=STATISTICS)


def bring_together(world: World, attempt: Attempt, cohort: tuple[str, ...]) -> None:
    """Sites that do whatever the coordinator wants: keys and contributions for an attempt."""
    for name in cohort:
        world.sites[name].me.sync()
        world.sites[name].carry_out(Post(kind=Kind.MASK_KEY, attempt=attempt, sites=cohort))
    for name in cohort:
        world.sites[name].me.sync()
        world.sites[name].carry_out(Post(kind=Kind.CONTRIBUTION, attempt=attempt, sites=cohort))
    world.coordinator.sync()


def exported(world: World, folder: Path) -> dict[str, bytes]:
    """The auditor's export of a study, by file."""
    identity = folder / "identity"
    identity.mkdir(parents=True)
    (identity / "ca.crt").write_bytes(world.cast.ca_pem)
    out = folder / "export"
    write_export(out, world.auditor.participant, world.auditor.ledgers, identity=identity)
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file()
    }
