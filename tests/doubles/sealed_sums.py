"""The sum of sealed vectors that are all at hand."""

from __future__ import annotations

from collections.abc import Sequence

from lada_secure.encryption.parameters import AggregationParameters
from lada_secure.encryption.sealing import SealedSum


def add_sealed(params: AggregationParameters, sealed: Sequence[bytes]) -> bytes:
    """Check and add them, in their order."""
    total = SealedSum(params)
    for raw in sealed:
        total.add(raw)
    return total.to_bytes()
