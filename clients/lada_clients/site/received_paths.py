"""The LLM's rationales as a site reads them."""

from __future__ import annotations

from collections.abc import Sequence

from lada_protocol.kinds import Kind
from lada_protocol.rounds.llm_transfer import MAX_RATIONALE_CHARACTERS
from lada_secure.canonical import parse_canonical_json
from lada_secure.data.records import PoolSample
from lada_secure.errors import PeerError
from lada_secure.method.site_state import ReceivedRationale


def parse_received_rationales(
    raw: bytes, *, pool: Sequence[PoolSample], cells: int
) -> tuple[ReceivedRationale, ...]:
    """Read the payload of `paths`.

    Raises: PeerError(reason="malformed"): anything but known samples, cells and texts.
    """
    places = {sample.sample_id: number for number, sample in enumerate(pool)}
    value = parse_canonical_json(raw, max_bytes=Kind.PATHS.rules.max_payload_bytes)
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
        received.append(ReceivedRationale(pool_index=places[sample], cell=cell, text=path))
    if len({one.pool_index for one in received}) != len(received):
        raise PeerError("paths: two paths for one sample")
    return tuple(received)
