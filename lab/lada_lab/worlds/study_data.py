"""What a simulated study starts from, whatever world it is about."""

from __future__ import annotations

from dataclasses import dataclass

from lada_secure.data.records import PoolSample, Record


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchSite:
    """One site's private data. `held_out` repeats no template of `train` or of the pool."""

    name: str
    train: tuple[Record, ...]
    held_out: tuple[Record, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchData:
    """A whole study's data.

    mark: how a question starts that means another thing to the public than inside a house.
    harmful: pool indices of harmful samples, for reports only.
    """

    sites: tuple[BenchSite, ...]
    pool: tuple[PoolSample, ...]
    mark: str
    harmful: frozenset[int]
