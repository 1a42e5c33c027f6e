"""Everything a study on one machine starts from: the sites' records, the pool, public material."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np

from lada_secure.data.records import PoolSample, Record
from lada_secure.errors import ParameterError

Preset: TypeAlias = Literal["demo", "tiny"]

MIN_SITES = 3
MAX_SITES = 12

# How many records a unit has, 1 to 4, and how often: most people come once.
_RECORDS_PER_UNIT = (1, 2, 3, 4)
_UNIT_SHARES = (0.6, 0.2, 0.12, 0.08)


# What can be sorted: texts, and tuples of texts.
Item = TypeVar("Item", str, tuple[Any, ...])


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteData:
    """One site's private records: for training, and held out to measure it.

    No code, synset or template of `held_out` occurs in `train`, in the pool or in the material that
    the LLM is tuned on.
    """

    train: tuple[Record, ...]
    held_out: tuple[Record, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FederationData:
    """A whole study's data. `teacher` is public material with reasoning, to tune the LLM on."""

    sites: Mapping[str, SiteData]
    pool: tuple[PoolSample, ...]
    teacher: tuple[Record, ...]


def check_sites(sites: int) -> None:
    """Refuse a number of sites that no preset supports.

    Raises: ParameterError: fewer than 3 (a sum over two sites shows each the other's) or over 12.
    """
    if not MIN_SITES <= sites <= MAX_SITES:
        raise ParameterError(
            f"sites: expected {MIN_SITES} to {MAX_SITES}, got {sites}; a sum over fewer than "
            f"{MIN_SITES} sites would show a site the others' share"
        )


def site_letter(index: int) -> str:
    """The letter that names the `index`-th site of its kind, from "a"."""
    return string.ascii_lowercase[index]


def unit_names(rng: np.random.Generator, records: int, *, prefix: str) -> list[str]:
    """Synthetic privacy-unit ids for that many records; neighbours may share a unit (1 to 4).

    Returns: one unit id per record, for example "patient-0007".
    """
    names: list[str] = []
    unit = 0
    while len(names) < records:
        unit += 1
        size = int(rng.choice(_RECORDS_PER_UNIT, p=_UNIT_SHARES))
        names.extend([f"{prefix}-{unit:04d}"] * size)
    return names[:records]


def shuffled(rng: np.random.Generator, items: Sequence[Item]) -> list[Item]:
    """The items in an order that depends on the generator alone.

    They are sorted first: sets change their order from run to run (hash randomisation).
    """
    ordered = sorted(items)
    return [ordered[index] for index in rng.permutation(len(ordered))]


def build_federation(preset: Preset, *, sites: int, seed: int) -> FederationData:
    """Build a preset's data; the same arguments give the same bytes on every machine.

    Args: preset: "demo" for medicine and finance in words, "tiny" for modular arithmetic.
        sites: 3 to 12. seed: any integer >= 0; for data only, never for privacy noise or keys.
    Raises: ParameterError: unknown preset, sites out of range, negative seed, or a missing source
        (WordNet's folder, the ICD-10 package), with what to install.
    """
    check_sites(sites)
    if seed < 0:
        raise ParameterError(f"seed: expected 0 or more, got {seed}")
    # Imported here because the demo's sources take seconds to load and tiny needs none of them.
    if preset == "tiny":
        from lada_lab.worlds.arithmetic import build_arithmetic

        return build_arithmetic(sites=sites, seed=seed)
    if preset == "demo":
        from lada_lab.worlds.demo import build_demo

        return build_demo(sites=sites, seed=seed)
    raise ParameterError(f"preset: expected 'demo' or 'tiny', got {preset!r}")
