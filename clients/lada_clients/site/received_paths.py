"""The LLM's rationales as a site reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lada_protocol.kinds import Kind, kind_rules
from lada_protocol.rounds.llm_transfer import MAX_RATIONALE_CHARACTERS
from lada_secure.canonical import parse_canonical_json
from lada_secure.data.records import PoolSample
from lada_secure.errors import PeerError


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedRationale:
    """One rationale of the LLM, checked against the pool. sample: pool index."""

    sample: int
    cell: int
    path: str


def parse_received_rationales(
    raw: bytes, *, pool: Sequence[PoolSample], cells: int
) -> tuple[ReceivedRationale, ...]:
    """Read the payload of `paths`.

    Raises: PeerError(reason="malformed"): anything but known samples, cells and texts.
    """
    places = {sample.sample_id: number for number, sample in enumerate(pool)}
    value = parse_canonical_json(raw, max_bytes=kind_rules(Kind.PATHS).max_payload_bytes)
    received: list[ReceivedRationale] = []
    if not isinstance(value, list):
        raise PeerError("paths: expected a list")
    for row in value:
        if not isinstance(row, dict) or set(row) != {"sample_id", "path", "cell"}:
            raise PeerError("paths: expected objects with sample_id, path and cell")
        sample, path, cell = row["sample_id"], row["path"], row["cell"]
        known = isinstance(sample, str) and sample in places
        if not known or type(cell) is not int or not 0 <= cell < cells:
            raise PeerError("paths: a sample or cell that the study does not have")
        if not isinstance(path, str) or not 0 < len(path) <= MAX_RATIONALE_CHARACTERS:
            raise PeerError(f"paths: expected texts of 1 to {MAX_RATIONALE_CHARACTERS} characters")
        received.append(ReceivedRationale(sample=places[sample], cell=cell, path=path))
    if len({one.sample for one in received}) != len(received):
        raise PeerError("paths: two paths for one sample")
    return tuple(received)
