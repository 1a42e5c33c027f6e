"""`lada mock scale`: the same small study with more and more sites, and what each size costs.

Coordinator and auditor are the operator's own commands; every site is a process with its own
keys, ledger and settings. The study trains as little as a plan allows, so that what is measured
is the protocol: messages, bytes, the coordinator's memory and time.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from pydantic import BaseModel, ConfigDict

from lada_clients.audit.folder import read_evidence
from lada_clients.ca.authority import init_ca, issue_party, make_roster
from lada_lab.machine import machine
from lada_lab.mock.layout import RunLayout
from lada_lab.mock.memory import group_memory_bytes
from lada_lab.mock.preparation import (
    HOST,
    LOOPBACK,
    check_out,
    child_environment,
    free_port,
    party_children,
    write_data,
    write_settings,
)
from lada_lab.mock.presets import TINY, Preset
from lada_lab.mock.process_usage import Usage, process_usage
from lada_lab.mock.runner import MEMORY_SAMPLE_S
from lada_lab.mock.supervisor import Child, Supervisor, failure_text
from lada_lab.mock.weights import prepare_missing
from lada_lab.worlds.federation import build_federation
from lada_lab.worlds.sites import FederationData, SiteData
from lada_protocol.evidence.study import verify_evidence
from lada_protocol.identity.certificates import PartyName
from lada_protocol.kinds import Role
from lada_secure.errors import ParameterError, TransportError

MIN_SITES: Final = 3
MAX_SITES: Final = 200
DOMAINS: Final = 3
RECORDS: Final = 60
HELD_OUT: Final = 4
TICK_S: Final = 0.1
SITES_HOST: Final = "sites"
# Growth of y over x as the exponent of a power: 1 is proportional.
GROWING: Final = (
    "round_s",
    "coordinator_cpu_s",
    "coordinator_peak_bytes",
    "messages_up",
    "messages_down",
    "bytes_up",
    "bytes_down",
)


class SizeFigures(BaseModel):
    """One study of one round with so many sites.

    messages_*, bytes_*: of one site, mean over the sites, headers, signatures and payloads; TLS
    and HTTP/2 come on top. round_s: from the first cohort to the end, all sites on this machine.
    coordinator_*: of the coordinator's process. memory_bytes: all processes, shared pages once.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sites: int
    wall_s: float
    round_s: float
    messages_up: float
    messages_down: float
    bytes_up: float
    bytes_down: float
    coordinator_peak_bytes: int
    coordinator_cpu_s: float
    memory_bytes: int | None
    openings: int


class ScaleReport(BaseModel):
    """All sizes; `growth` is the exponent of each figure between the smallest and the largest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cpus: int
    platform: str
    python: str
    sizes: tuple[SizeFigures, ...]
    growth: dict[str, float]


def run_scale(
    sizes: Sequence[int],
    *,
    out: Path,
    cache_dir: Path,
    seed: int,
    say: Callable[[str], None],
) -> ScaleReport:
    """Run one study per size, the smallest first; every run's folder stays under `out`.

    Raises: ParameterError: sizes out of range, or `out` is not empty. TransportError: a party
        failed, or the evidence does not hold.
    """
    wanted = sorted(set(sizes))
    if not wanted or wanted[0] < MIN_SITES or wanted[-1] > MAX_SITES:
        raise ParameterError(f"--sites: expected numbers from {MIN_SITES} to {MAX_SITES}")
    check_out(out)
    environment = child_environment(os.environ)
    preset = scale_preset(seed)
    with Supervisor() as supervisor:
        prepare_missing(preset, supervisor, cache_dir=cache_dir, environment=environment)
    figures = []
    for sites in wanted:
        say(f"{sites} sites ...")
        figures.append(
            _run_size(sites, out=out.absolute(), preset=preset, cache_dir=cache_dir, seed=seed)
        )
        say(f"{sites} sites: a round in {figures[-1].round_s:.0f} s")
    cpus, platform, python = machine()
    return ScaleReport(
        cpus=cpus, platform=platform, python=python, sizes=tuple(figures), growth=_growth(figures)
    )


def scale_preset(seed: int) -> Preset:
    """The tiny preset with one step of training, few paths, no contrast and no LLM transfer."""
    return replace(
        TINY,
        name="scale",
        title="A study of one round, with as little training as a plan allows",
        rounds=1,
        slm=TINY.slm.format(sites=DOMAINS, seed=seed),
        llm=TINY.llm.format(sites=DOMAINS, seed=seed),
        training=TINY.training.model_copy(update={"steps_per_round": 1}),
        distillation=TINY.distillation.model_copy(update={"contrastive_weight": 0.0}),
        allocation=TINY.allocation.model_copy(update={"quota": 16}),
        paths=TINY.paths.model_copy(update={"budget": 32, "attempts": 1}),
        uplink=None,
        # 50 sites share two cores here; nobody is given up for that.
        phase_timeout_s=1800.0,
    )


def dealt_data(sites: int, *, seed: int) -> FederationData:
    """The tiny world's records of three domains, dealt out to any number of sites in turn.

    Records of one domain come up at several of its sites; no site can tell.
    """
    world = build_federation("tiny", sites=DOMAINS, seed=seed)
    domains = list(world.sites.values())
    dealt: dict[str, SiteData] = {}
    for number in range(sites):
        whole = domains[number % DOMAINS]
        first = number // DOMAINS * RECORDS // 2 % (len(whole.train) - RECORDS)
        dealt[f"site-{number + 1:03d}"] = SiteData(
            train=whole.train[first : first + RECORDS], held_out=whole.held_out[:HELD_OUT]
        )
    return FederationData(sites=dealt, pool=world.pool, teacher=())


def _run_size(sites: int, *, out: Path, preset: Preset, cache_dir: Path, seed: int) -> SizeFigures:
    data = dealt_data(sites, seed=seed)
    layout = RunLayout(root=out / f"{sites}-sites", site_ids=tuple(data.sites))
    write_data(layout, data)
    write_settings(
        layout,
        preset,
        port=free_port(0),
        roster_sha256=make_identities(layout),
        cache_dir=cache_dir,
        seed=seed,
    )
    began = time.monotonic()
    usage, memory = _run_parties(layout)
    wall_s = time.monotonic() - began
    verdict = verify_evidence(read_evidence(layout.export))
    if verdict.faults:
        raise TransportError(f"{sites} sites: the evidence does not hold: {verdict.faults[0]}")
    traffic = [_events(layout.site(one).events, "traffic")[-1] for one in layout.site_ids]
    return SizeFigures(
        sites=sites,
        wall_s=round(wall_s, 1),
        round_s=round(_round_s(layout), 1),
        messages_up=_mean(traffic, "messages_up"),
        messages_down=_mean(traffic, "messages_down"),
        bytes_up=_mean(traffic, "bytes_up"),
        bytes_down=_mean(traffic, "bytes_down"),
        coordinator_peak_bytes=usage.peak_bytes,
        coordinator_cpu_s=round(usage.cpu_s, 1),
        memory_bytes=memory,
        openings=verdict.openings,
    )


def make_identities(layout: RunLayout) -> str:
    """CA, certificates and roster, made in this process: a command each would take minutes."""
    now = datetime.now(UTC)
    init_ca(layout.ca, name="scale", days=2, now=now)
    for party, folder in layout.parties.items():
        issue_party(
            layout.ca,
            party=PartyName(role=Role(layout.role(party)), id=party),
            hosts=(HOST, LOOPBACK),
            days=1,
            out=folder.identity,
            now=now,
        )
    folders = [folder.identity for folder in layout.parties.values()]
    return make_roster(layout.ca, parties=folders, out=layout.roster, now=now).hash


def _run_parties(layout: RunLayout) -> tuple[Usage, int | None]:
    """Run all parties to their end; the coordinator's usage, and the most memory of all."""
    environment = child_environment(os.environ)
    coordinator, auditor, *_ = party_children(layout, environment=environment)
    settings = [str(layout.site(one).settings) for one in layout.site_ids]
    many = Child(
        name=SITES_HOST,
        arguments=(sys.executable, "-m", "lada_lab.mock.many_sites", *settings),
        log=layout.root / "sites.txt",
        environment=environment,
    )
    usage, memory, sampled_s = Usage(peak_bytes=0, cpu_s=0.0), None, float("-inf")
    with Supervisor() as supervisor:
        for child in (coordinator, auditor, many):
            supervisor.start(child)
        groups = supervisor.groups
        while supervisor.running:
            time.sleep(TICK_S)
            usage = process_usage(groups[coordinator.name]) or usage
            if time.monotonic() - sampled_s >= MEMORY_SAMPLE_S:
                sampled_s = time.monotonic()
                memory = max(group_memory_bytes(groups.values()) or 0, memory or 0) or None
            for ended in supervisor.poll():
                if ended.status != 0:
                    raise TransportError(failure_text(ended))
    return usage, memory


def _events(path: Path, kind: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_bytes().splitlines()]
    return [row for row in rows if row["event"] == kind]


def _round_s(layout: RunLayout) -> float:
    events = layout.coordinator.events
    opened = [one for one in _events(events, "step_started") if one["step"] == "opening"]
    end: float = _events(events, "finished")[-1]["time_s"]
    return end - float(opened[0]["time_s"])


def _mean(rows: Sequence[dict[str, Any]], key: str) -> float:
    return round(fmean(row[key] for row in rows), 1)


def _growth(figures: Sequence[SizeFigures]) -> dict[str, float]:
    """log(last / first) over log(sites / sites): at most 1 is linear or better."""
    first, last = figures[0], figures[-1]
    if first.sites == last.sites:
        return {}
    span = math.log(last.sites / first.sites)
    return {
        name: round(math.log(getattr(last, name) / getattr(first, name)) / span, 3)
        for name in GROWING
        if getattr(first, name) and getattr(last, name)
    }
