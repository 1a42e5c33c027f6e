"""Sites that take part in one study after the other, with one auditor; everything in memory."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from protocol_world import CAPS, NOW, Cast, make_cast, make_plan
from simulated_parties import World, exported, make_world
from simulated_site import FOUR

from lada_protocol.rounds.tasks import Done
from lada_secure.privacy.ledger.book import LedgerBook
from lada_secure.privacy.ledger.carried_budget import grant_restart
from lada_secure.privacy.ledger.entries import LedgerIdentity
from lada_secure.privacy.ledger.memory import MemoryLedger
from lada_secure.privacy.ledger.restart import RestartGrant

SITE = "site-a"


@dataclass(kw_only=True)
class Federation:
    """Four sites and an auditor that take part in one study after the other."""

    folder: Path
    cast: Cast = field(default_factory=lambda: make_cast(FOUR))
    books: dict[str, LedgerBook] = field(default_factory=dict)
    studies: int = 0

    def study(self) -> World:
        """The next study, proposed; every party has joined with what it has kept."""
        self.studies += 1
        plan = make_plan(study_id=f"study-{self.studies}", rounds=1, seed=self.studies)
        world = make_world(self.folder, sites=FOUR, cast_=self.cast, plan=plan)
        for name, site in world.sites.items():
            site.book = self.books.setdefault(name, site.book)
        return world

    def finished(self) -> World:
        """The next study, carried out by whoever is admitted."""
        world = self.study()
        world.run()
        assert world.coordinator.next() == Done()
        return world

    def spent(self) -> float:
        """Epsilon in site-a's ledger."""
        return self.books[SITE].epsilon_spent(1e-5)

    def export(self, world: World) -> dict[str, bytes]:
        """What the auditor exports of a study."""
        return exported(world, self.folder / f"out-{world.plan.study_id}")


def backup_of(cast: Cast, entries: LedgerBook, length: int) -> MemoryLedger:
    """A copy of a ledger as it was at this length: what a backup holds."""
    identity = entries.identity
    copy = MemoryLedger(
        identity=identity, signing_key=cast.keys[SITE], caps=CAPS, clock=lambda: NOW
    )
    kept = MemoryLedger(
        identity=identity, signing_key=cast.keys[SITE], caps=CAPS, clock=lambda: NOW
    )._kept
    fresh = type(kept)(identity)
    for entry in entries.entries()[:length]:
        fresh.append(entry, None, written=entry.time)
    copy._kept = fresh
    return copy


def granted(federation: Federation, world: World) -> tuple[RestartGrant, MemoryLedger]:
    """The auditor's grant for site-a, noted there, and the ledger that begins with it."""
    copies = world.auditor.ledgers
    grant = grant_restart(
        copies.entries(SITE, "patients"),
        public_key=federation.cast.keys[SITE].public_key().public_bytes_raw(),
        target_delta=1e-5,
        requested_by="dr-meyer",
        auditor="auditor",
        granted_by="dr-weber",
        signing_key=federation.cast.keys["auditor"],
        time=NOW,
    )
    copies.keep_grant(grant)
    ledger = MemoryLedger(
        identity=LedgerIdentity(site=SITE, population="patients", ledger_id=grant.ledger_id),
        signing_key=federation.cast.keys[SITE],
        caps=CAPS,
        clock=lambda: NOW,
        grant=grant,
    )
    return grant, ledger


def forged(federation: Federation, grant: RestartGrant) -> tuple[RestartGrant, MemoryLedger]:
    """The same grant but for what it carries over, signed by site-a itself; and its ledger."""
    key = federation.cast.keys[SITE]
    own = replace(grant, carried=None, studies=(), carried_epsilon=0.0).signed(key)
    ledger = MemoryLedger(
        identity=LedgerIdentity(site=SITE, population="patients", ledger_id=own.ledger_id),
        signing_key=key,
        caps=CAPS,
        clock=lambda: NOW,
        grant=own,
    )
    return own, ledger
