"""A study of blind scores whose coordinator reads one site's utilities by a ladder of levels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from protocol_world import MemoryBoard, make_plan, statistics_spec
from simulated_parties import World, bring_together, make_world, notes, refusal
from simulated_site import THREE, SimulatedSite, owes, scores_of

from lada_clients.net.study_folder import SecretFolder
from lada_clients.site.exchanges import SiteExchanges
from lada_protocol.identity.roster import Party
from lada_protocol.kinds import Kind
from lada_protocol.rounds.blind_scoring import scoring_parameters_of
from lada_protocol.rounds.index import Attempt
from lada_protocol.rounds.tasks import Post
from lada_protocol.wire.envelope import Envelope
from lada_protocol.wire.messages import FaultBody
from lada_secure.allocation.selection import pick
from lada_secure.encryption.parameters import (
    HEADER_BYTES,
    POLY_MODULUS_DEGREE,
    SCORING_COEFFICIENT_BYTES,
    SCORING_MODULUS,
)
from lada_secure.encryption.parsing import pack, unpack
from lada_secure.method.plan import DEMAND, AllocationPlan
from lada_secure.privacy.released import post_process

CELLS, THRESHOLD, STEP = 12, 0.2, 0.03
LEVELS = np.arange(THRESHOLD, 1.0, STEP)
# Of these cells the ladder reads the utility.
READ = 6
POOL = READ * len(LEVELS)
PLAN = make_plan(
    pool_size=POOL,
    allocation=AllocationPlan(
        strategy="band",
        clusters=6,
        difficulty_bins=2,
        quota=POOL,
        threshold=THRESHOLD,
        exploration_weight=0.1,
        screen_low=0.0,
        screen_high=1.0,
    ),
)
VICTIM, OTHERS = "site-a", ("site-b", "site-c")


def ladder() -> np.ndarray:
    """Row (cell, level): the score reaches the threshold exactly where the utility is above it."""
    rows = np.zeros((POOL, CELLS))
    for cell in range(READ):
        rows[cell * len(LEVELS) : (cell + 1) * len(LEVELS), cell] = THRESHOLD / LEVELS
    return rows


def read_ladder(demand: np.ndarray) -> np.ndarray:
    """The utilities of the first cells, as the levels that were picked say; 0 where none was."""
    reached = demand.reshape(READ, len(LEVELS)).sum(axis=1)
    return np.where(reached > 0, THRESHOLD + (reached - 0.5) * STEP, 0.0)


@dataclass(kw_only=True)
class PickingSite(SimulatedSite):
    """A site that picks by the scores it was sent, through the code of the real one."""

    secrets: SecretFolder

    @property
    def scoring(self) -> SiteExchanges:
        return SiteExchanges(participant=self.me, secrets=self.secrets)

    def ask(self, round_id: int) -> None:
        plan = self.me.plan
        released = self.book.release(
            statistics_spec(plan, round_id),
            compute=lambda _paid: b"noised statistics",
            encode=bytes,
            decode=bytes,
        )
        utilities = post_process(released, lambda _: self.utilities[0], label="cell utilities")
        self.scoring.ask_scores(round_id, utilities)

    def vector(self, attempt: Attempt) -> np.ndarray:
        if attempt.purpose != DEMAND:
            return super().vector(attempt)
        allocation = self.me.plan.allocation
        wanted = np.zeros(POOL, dtype=np.int64)
        scores = self.scoring.read_scores(attempt.round_id)
        if scores is not None:
            picked = pick(scores, scores >= allocation.threshold, quota=allocation.quota, seed=0)
            wanted[picked] = 1
        return wanted


@dataclass
class TwoFacedBoard(MemoryBoard):
    """A board that hides single messages from single readers."""

    hidden: set[tuple[str, str]] = field(default_factory=set)

    def visible(self, party: Party, after: int) -> list[tuple[int, Envelope]]:
        return [
            (number, one)
            for number, one in super().visible(party, after)
            if (party.id, one.message_hash) not in self.hidden
        ]


def make_sites(folder: Path) -> World:
    """Three sites with utilities of their own, before the first round."""
    world = make_world(folder, sites=THREE, plan=PLAN)
    rng = np.random.default_rng(11)
    for name, old in world.sites.items():
        world.sites[name] = PickingSite(
            me=old.me,
            book=old.book,
            utilities={0: rng.uniform(THRESHOLD, 1.0, CELLS)},
            secrets=SecretFolder(folder=folder / name / "secrets"),
        )
    return world


def queried(world: World, round_id: int = 0) -> None:
    """Run until every site has asked in this round and nobody is answered."""
    for _ in range(400):
        task = world.coordinator.next()
        answering = owes(task, Kind.SCORES) and task.round_id == round_id
        asked = [
            one
            for one, _ in world.board.rows
            if one.kind is Kind.QUERY and one.header.round_id == round_id
        ]
        if answering and len(asked) == len(THREE):
            return
        if not answering:
            world.coordinator.step()
        world.auditor_step()
        for site in world.sites.values():
            site.step()
    raise AssertionError("the queries were never posted")


def query_of(world: World, site: str, round_id: int = 0) -> bytes:
    """What a site has asked."""
    found = world.coordinator.index.find(
        Kind.QUERY, sender=site, to="coordinator", round_id=round_id
    )
    assert found is not None
    return world.board.payload(found.message_hash)


def to_opening(world: World, round_id: int = 0) -> Attempt:
    """The coordinator names the cohort, the sites contribute, the sum is on the board."""
    attempt = Attempt(round_id=round_id, purpose=DEMAND, number=0)
    world.coordinator.sync()
    world.coordinator.carry_out(Post(kind=Kind.COHORT, attempt=attempt, sites=THREE))
    bring_together(world, attempt, THREE)
    world.coordinator.carry_out(Post(kind=Kind.SUM, attempt=attempt, sites=THREE))
    return attempt


def recovered(world: World) -> list[Envelope]:
    """What the coordinator has of anybody's picks and utilities: the demands that were opened."""
    return [
        one
        for one, _ in world.board.rows
        if one.kind is Kind.OPENED and one.header.purpose == DEMAND
    ]


def assert_refused(world: World, attempt: Attempt, code: str) -> FaultBody:
    """The auditor opens nothing, has claimed nothing, and names the coordinator."""
    fault = refusal(world, attempt)
    assert fault.code == code, fault.message
    assert "coordinator" in fault.message
    assert recovered(world) == []
    assert not [name for name in notes(world) if name.endswith(f"{attempt.round_id}-{DEMAND}")]
    return fault


def shifted(scores: bytes, by: float) -> bytes:
    """Add one number to every score: a constant polynomial is the same constant in NTT form."""
    bits = scoring_parameters_of(PLAN).query_scale_bits
    bits += scoring_parameters_of(PLAN).matrix_scale_bits
    body = unpack(scores[HEADER_BYTES:], SCORING_COEFFICIENT_BYTES).astype(object)
    blocks = body.reshape(-1, 2, POLY_MODULUS_DEGREE)
    blocks[:, 0] = (blocks[:, 0] + round(by * 2**bits)) % SCORING_MODULUS
    return scores[:HEADER_BYTES] + pack(
        blocks.astype(np.uint64).reshape(-1), SCORING_COEFFICIENT_BYTES
    )


def bare(value: float) -> bytes:
    """Scores that are all one number, not encrypted at all: the second polynomial is zero."""
    parameters = scoring_parameters_of(PLAN)
    empty = bytes(parameters.scores_bytes(POOL) - HEADER_BYTES)
    return shifted(b"LSS1" + bytes.fromhex(parameters.digest) + empty, value)


Answer = Callable[[World, str], bytes]


def silence(world: World, site: str) -> bytes:
    """Zeros to the others, the ladder to the victim."""
    rows = ladder() if site == VICTIM else np.zeros((POOL, CELLS))
    return scores_of(rows, query_of(world, site))
