"""The data of a mock study, by the name that its preset gives."""

from __future__ import annotations

from dataclasses import replace
from typing import Final, Literal, TypeAlias

from lada_lab.worlds.arithmetic import build_arithmetic
from lada_lab.worlds.chain_world import WorldSettings, build_data
from lada_lab.worlds.sites import FederationData, SiteData, check_sites
from lada_lab.worlds.study_data import BenchData
from lada_secure.errors import ParameterError

DataName: TypeAlias = Literal["demo", "tiny", "chains"]

# The benchmark's world as the mock has it. Seven of ten records are routine, as most of what a
# hospital sees is, and no study needs to teach it.
CHAINS: Final = WorldSettings(familiar=0.7, harmful=0.0, marked=0.0)


def build_federation(name: DataName, *, sites: int, seed: int) -> FederationData:
    """Build a study's data; the same arguments give the same bytes on every machine.

    Args: name: "demo" for medicine and finance in words, "tiny" for modular arithmetic, "chains"
        for arithmetic with words that each site uses in its own way.
        sites: 3 to 12. seed: any integer >= 0; for data only, never for privacy noise or keys.
    Raises: ParameterError: unknown name, sites out of range, negative seed, or a missing source
        (WordNet's folder, the ICD-10 package), with what to install.
    """
    check_sites(sites)
    if seed < 0:
        raise ParameterError(f"seed: expected 0 or more, got {seed}")
    if name == "tiny":
        return build_arithmetic(sites=sites, seed=seed)
    if name == "chains":
        return _federation(build_data(replace(CHAINS, sites=sites), seed=seed))
    if name == "demo":
        # Imported here because its sources take seconds to load and the others need none of them.
        from lada_lab.worlds.demo import build_demo

        return build_demo(sites=sites, seed=seed)
    raise ParameterError(f"data: expected demo, tiny or chains, got {name!r}")


def _federation(data: BenchData) -> FederationData:
    sites = {one.name: SiteData(train=one.train, held_out=one.held_out) for one in data.sites}
    return FederationData(sites=sites, pool=data.pool, teacher=())
