"""The exported study: which files there are, and where faults in them are collected."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TypeAlias

from lada_secure.errors import LadaError, PeerError

# Content of the files by their path in the export.
Files: TypeAlias = Mapping[str, bytes]

CA_FILE = "ca.crt"
ROSTER_FILE = "roster.json"
PLAN_FILE = "plan.json"
MESSAGES_FILE = "messages.jsonl"


def ledger_file(site: str) -> str:
    """Where a site's ledger stands."""
    return f"ledgers/{site}.jsonl"


def aggregate_file(round_id: int, purpose: str) -> str:
    """Where an opened sum stands."""
    return f"openings/{round_id}-{purpose}.json"


def transcript_file(round_id: int) -> str:
    """Where a round's transcript stands."""
    return f"transcripts/{round_id}.json"


class Faults:
    """Collects what is wrong; one bad file does not hide another."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def add(self, where: str, what: str | LadaError) -> None:
        """Note a fault of a file."""
        self.found.append(f"{where}: {what}")

    @contextmanager
    def of(self, where: str) -> Iterator[None]:
        """Whatever is found wrong inside is a fault of this file, and ends its checks alone."""
        try:
            yield
        except LadaError as error:
            self.add(where, error)


def need(holds: bool, otherwise: str) -> None:
    """Raises: PeerError: it does not hold; says what is wrong otherwise."""
    if not holds:
        raise PeerError(otherwise)
