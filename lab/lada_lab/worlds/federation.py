"""The data of a mock study, by the name of its preset."""

from __future__ import annotations

from typing import Literal, TypeAlias

from lada_lab.worlds.arithmetic import build_arithmetic
from lada_lab.worlds.sites import FederationData, check_sites
from lada_secure.errors import ParameterError

Preset: TypeAlias = Literal["demo", "tiny"]


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
    if preset == "tiny":
        return build_arithmetic(sites=sites, seed=seed)
    if preset == "demo":
        # Imported here because the demo's sources take seconds to load and tiny needs none of them.
        from lada_lab.worlds.demo import build_demo

        return build_demo(sites=sites, seed=seed)
    raise ParameterError(f"preset: expected 'demo' or 'tiny', got {preset!r}")
