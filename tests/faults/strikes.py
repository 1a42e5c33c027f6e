"""The faults: what is done to a party, for how long, and how it is undone."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from lada_clients.net.transport import BoardClient, RefusedByBoard
from lada_protocol.identity.roster import parse_roster
from lada_protocol.wire.envelope import Envelope, parse_envelope
from lada_secure.errors import TransportError

from .federation import Federation
from .processes import Processes
from .relay import Relay
from .sight import Sight, reading

WORKERS_GONE_S = 5.0
ERROR_EXIT = 1
LARGEST_FILL = 1 << 30


class Suffered(Exception):
    """The fault did what it must not do; the text says what."""


class TooLate(Exception):
    """The run was over before the fault could strike; it counts for nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What faults may touch. `full_by`: how a disk is made full, "tmpfs" or "size limit"."""

    federation: Federation
    processes: Processes
    relays: Mapping[str, Relay]
    sight: Sight
    full_by: str


@dataclass(slots=True, kw_only=True)
class Strike(ABC):
    """One fault at one party. `begin` once, then `proceed` until it returns True."""

    name: ClassVar[str]
    world: World
    party: str
    began_s: float = field(default=0.0, init=False)

    @abstractmethod
    def begin(self) -> None:
        """Do it."""

    @abstractmethod
    def proceed(self) -> bool:
        """Undo it when its time has come; True once the party is left alone again.

        Raises: Suffered: something happened that the fault does not excuse.
        """

    @property
    def elapsed_s(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self.began_s


@dataclass(slots=True, kw_only=True)
class Kill(Strike):
    """kill -9 of the party's process, then the same command again."""

    name: ClassVar[str] = "kill"

    def begin(self) -> None:
        self.world.processes.kill(self.party)

    def proceed(self) -> bool:
        left = self.world.processes.left(self.party)
        if left and self.elapsed_s < WORKERS_GONE_S:
            return False
        self.world.processes.start(self.party)
        if left:
            raise Suffered(f"{len(left)} workers outlived their party by {WORKERS_GONE_S:.0f} s")
        return True


@dataclass(slots=True, kw_only=True)
class Stop(Strike):
    """SIGSTOP for longer than keep-alive and every time limit of a connection, then SIGCONT."""

    name: ClassVar[str] = "stop"
    seconds: float = 15.0

    def begin(self) -> None:
        self.world.processes.stop(self.party)

    def proceed(self) -> bool:
        if self.elapsed_s < self.seconds:
            return False
        self.world.processes.go_on(self.party)
        return True


@dataclass(slots=True, kw_only=True)
class LinkStrike(Strike):
    """Something happens to the party's link; to all links where it is the coordinator."""

    seconds: float = 1.0

    @property
    def links(self) -> tuple[Relay, ...]:
        """The relays that carry the party's traffic."""
        relays = self.world.relays
        return (relays[self.party],) if self.party in relays else tuple(relays.values())

    def begin(self) -> None:
        for one in self.links:
            self.disturb(one)

    def proceed(self) -> bool:
        if self.elapsed_s < self.seconds:
            return False
        for one in self.links:
            self.mend(one)
        return True

    @abstractmethod
    def disturb(self, link: Relay) -> None:
        """What happens to one link."""

    @abstractmethod
    def mend(self, link: Relay) -> None:
        """The link is as before."""


class Cut(LinkStrike):
    """All connections reset at once, new ones too for a second."""

    name: ClassVar[str] = "cut"

    def disturb(self, link: Relay) -> None:
        link.cut()

    def mend(self, link: Relay) -> None:
        link.mend()


@dataclass(slots=True, kw_only=True)
class Silence(LinkStrike):
    """Nothing gets through for longer than keep-alive bears, and nobody is told."""

    name: ClassVar[str] = "silence"
    seconds: float = 16.0

    def disturb(self, link: Relay) -> None:
        link.hold("up", "down")

    def mend(self, link: Relay) -> None:
        link.let_flow()


@dataclass(slots=True, kw_only=True)
class Slow(LinkStrike):
    """1 Mbit/s and a round trip of 300 ms."""

    name: ClassVar[str] = "slow"
    seconds: float = 4.0

    def disturb(self, link: Relay) -> None:
        link.delay_s, link.bits_per_s = 0.15, 1e6

    def mend(self, link: Relay) -> None:
        link.delay_s = link.bits_per_s = 0.0


@dataclass(slots=True, kw_only=True)
class Overtaken(LinkStrike):
    """What the party sends is held back until others' later messages have arrived."""

    name: ClassVar[str] = "overtaken"
    seconds: float = 2.5

    def disturb(self, link: Relay) -> None:
        link.hold("up")

    def mend(self, link: Relay) -> None:
        link.let_flow()


@dataclass(slots=True, kw_only=True)
class Repeated(Strike):
    """Everything the party ever posted is posted again over a second connection.

    Twice, newest first: duplicated, out of order, and beside the party itself. The board must
    answer with the places that the messages have already.
    """

    name: ClassVar[str] = "repeated"
    newest: ClassVar[int] = 30

    def begin(self) -> None:
        federation = self.world.federation
        layout = federation.layout
        roster = parse_roster(layout.roster.read_bytes())
        with reading(self.world.sight.board) as connection:
            rows = connection.execute(
                "select sequence, header, signature from board_messages where sender = ?"
                " order by sequence desc limit ?",
                (self.party, self.newest),
            ).fetchall()
        known = [(row[0], parse_envelope(row[1], row[2], roster=roster)) for row in rows]
        with BoardClient(
            f"127.0.0.1:{federation.port}",
            identity=layout.parties[self.party].identity,
            roster=roster,
            party_id=self.party,
            patience_s=20.0,
        ) as client:
            for sequence, envelope in (*known, *reversed(known[: len(known) // 2])):
                self._post_again(client, sequence, envelope)

    def _post_again(self, client: BoardClient, sequence: int, envelope: Envelope) -> None:
        digest = envelope.message_hash
        payloads = self.world.federation.layout.coordinator.state / "payloads"
        path = payloads / digest[:2] / digest
        payload = path.read_bytes() if envelope.header.payload_bytes else b""
        try:
            found = client.post(envelope, payload)
        except TransportError as error:
            self.world.sight.look()
            if self.world.sight.has("finished") and not isinstance(error, RefusedByBoard):
                raise TooLate(str(error)) from error
            raise Suffered(f"{envelope.header.kind} could not be posted again: {error}") from error
        if found != sequence:
            raise Suffered(
                f"{envelope.header.kind} posted again got the place {found}, it has {sequence}"
            )

    def proceed(self) -> bool:
        return True


@dataclass(slots=True, kw_only=True)
class Interrupting(Strike):
    """A fault that a party may answer with a clear error and its end; its operator mends the
    cause and starts it again."""

    seconds: float = 3.0

    def proceed(self) -> bool:
        processes = self.world.processes
        running = processes.running(self.party)
        if running and self.elapsed_s < self.seconds:
            return False
        self.mend()
        if running:
            return True
        status, words = processes.ended[self.party], processes.last_words(self.party)
        if status == 0:
            # It had done all its work.
            return True
        processes.start(self.party)
        if not is_clear_error(status, words):
            raise Suffered(f"ended with status {status} and no clear error: {words}")
        return True

    @abstractmethod
    def mend(self) -> None:
        """Take the cause away."""


@dataclass(slots=True, kw_only=True)
class DiskFull(Interrupting):
    """No byte more fits into the party's state folder."""

    name: ClassVar[str] = "disk full"

    @property
    def _filler(self) -> Path:
        return self.world.federation.layout.parties[self.party].state / "filler"

    def begin(self) -> None:
        if self.world.full_by == "tmpfs":
            fill(self._filler)
        else:
            self.world.processes.limit_file_size(self.party, 0)

    def mend(self) -> None:
        if self.world.full_by == "tmpfs":
            self._filler.unlink()
        else:
            self.world.processes.limit_file_size(self.party, -1)


@dataclass(slots=True, kw_only=True)
class ClockJump(Interrupting):
    """The party's wall clock jumps, and is set right after a while.

    Coordinator and auditor: an hour forward. The first site: an hour back, before its peers'
    certificates are valid. Other sites: two minutes back, before their ledgers' last entry.
    """

    name: ClassVar[str] = "clock"

    def begin(self) -> None:
        layout = self.world.federation.layout
        by_s = 3600.0
        if layout.parties[self.party].role == "site":
            by_s = -3600.0 if self.party == layout.site_ids[0] else -120.0
        clock_file(self.world.processes, self.party).write_text(str(by_s))

    def mend(self) -> None:
        clock_file(self.world.processes, self.party).write_text("0")


def is_clear_error(status: int, words: str) -> bool:
    """Whether a process ended as a refused command does: status 1, and a line that says why."""
    return status == ERROR_EXIT and words.startswith("error (")


def clock_file(processes: Processes, party: str) -> Path:
    """Where a party reads by how many seconds its clock is wrong; see `clock/sitecustomize.py`."""
    folder = processes.temporary(party)
    return folder.parent / f"{party}.clock"


def fill(path: Path) -> None:
    """Write until the disk is full, to the last byte.

    Raises: RuntimeError: it takes more than `LARGEST_FILL` bytes, so it was not made for this.
    """
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            piece = bytes(size)
            try:
                while file.tell() < LARGEST_FILL:
                    if file.write(piece) < size:
                        break
            except OSError:
                continue
        if file.tell() >= LARGEST_FILL:
            raise RuntimeError(f"{path}: the disk takes more than {LARGEST_FILL} bytes")


STRIKES: dict[str, type[Strike]] = {
    one.name: one
    for one in (Kill, Stop, Cut, Silence, Slow, Overtaken, Repeated, DiskFull, ClockJump)
}
