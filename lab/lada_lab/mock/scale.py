"""`lada mock scale`: the same small study with more and more sites, and what each size costs.

Coordinator and auditor are the operator's own commands; every site is a process with its own
keys, ledger and settings. The study trains as little as a plan allows, so that what is measured
is the protocol: messages, bytes, the coordinator's memory and time.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Final, TypeVar

from pydantic import BaseModel, ConfigDict

from lada_clients.audit.folder import read_evidence
from lada_lab.machine import PeakMemory, machine, process_usage
from lada_lab.mock.layout import RunLayout
from lada_lab.mock.preparation import check_out, free_port, party_children, write_run
from lada_lab.mock.presets import Preset, preset_for
from lada_lab.mock.supervisor import Child, Supervisor
from lada_lab.mock.weights import prepare_missing
from lada_lab.worlds.federation import build_federation
from lada_lab.worlds.sites import FederationData, SiteData
from lada_protocol.events import Event, Finished, StepStarted, Traffic, parse_event
from lada_protocol.evidence.study import verify_evidence
from lada_secure.errors import ParameterError, TransportError

E = TypeVar("E", bound=Event)

MIN_SITES: Final = 3
MAX_SITES: Final = 200
DOMAINS: Final = 3
RECORDS: Final = 60
HELD_OUT: Final = 4
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
    coordinator_*: of its process, memory looked at every 0.2 s. memory_bytes: all processes,
    shared pages once.
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
    sizes: Sequence[int], *, out: Path, cache_dir: Path, seed: int, say: Callable[[str], None]
) -> ScaleReport:
    """Run one study per size, the smallest first; every run's folder stays under `out`.

    Raises: ParameterError: sizes out of range, or `out` is not empty. TransportError: a party
        failed, or the evidence does not hold.
    """
    wanted = sorted(set(sizes))
    if not wanted or wanted[0] < MIN_SITES or wanted[-1] > MAX_SITES:
        raise ParameterError(f"--sites: expected numbers from {MIN_SITES} to {MAX_SITES}")
    check_out(out)
    preset = scale_preset(seed)
    with Supervisor() as supervisor:
        prepare_missing(preset, supervisor, cache_dir=cache_dir)
    figures = []
    for sites in wanted:
        say(f"{sites} sites ...")
        figures.append(_run_size(sites, out=out.absolute(), preset=preset, cache_dir=cache_dir))
        say(f"{sites} sites: a round in {figures[-1].round_s:.0f} s")
    cpus, platform, python = machine()
    return ScaleReport(
        cpus=cpus, platform=platform, python=python, sizes=tuple(figures), growth=_growth(figures)
    )


def scale_preset(seed: int) -> Preset:
    """The tiny preset with one step of training, few paths, no contrast and no LLM transfer."""
    tiny = preset_for("tiny", sites=DOMAINS, rounds=1, seed=seed)
    return tiny.model_copy(
        update={
            "name": "scale",
            "study_id": f"mock-scale-{seed}",
            "title": "A study of one round, with as little training as a plan allows",
            "training": tiny.training.model_copy(update={"steps_per_round": 1}),
            "distillation": tiny.distillation.model_copy(update={"contrastive_weight": 0.0}),
            "allocation": tiny.allocation.model_copy(update={"quota": 16}),
            "paths": tiny.paths.model_copy(update={"budget": 32, "attempts": 1}),
            "uplink": None,
            # 50 sites share two cores here; nobody is given up for that.
            "phase_timeout_s": 1800.0,
        }
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


def _run_size(sites: int, *, out: Path, preset: Preset, cache_dir: Path) -> SizeFigures:
    data = dealt_data(sites, seed=preset.seed)
    layout = RunLayout(root=out / f"{sites}-sites", site_ids=tuple(data.sites))
    write_run(layout, preset, data, port=free_port(0), cache_dir=cache_dir)
    began = time.monotonic()
    peak_bytes, cpu_s, memory = _run_parties(layout)
    wall_s = time.monotonic() - began
    verdict = verify_evidence(read_evidence(layout.export))
    if verdict.faults:
        raise TransportError(f"{sites} sites: the evidence does not hold: {verdict.faults[0]}")
    told = layout.coordinator.events
    opened = next(event for event in _events(told, StepStarted) if event.step == "opening")
    ended = _events(told, Finished)[-1]
    traffic = [_events(layout.site(site).events, Traffic)[-1] for site in layout.site_ids]
    return SizeFigures(
        sites=sites,
        wall_s=round(wall_s, 1),
        round_s=round(ended.time_s - opened.time_s, 1),
        **{
            name: round(fmean(getattr(told, name) for told in traffic), 1)
            for name in ("messages_up", "messages_down", "bytes_up", "bytes_down")
        },
        coordinator_peak_bytes=peak_bytes,
        coordinator_cpu_s=round(cpu_s, 1),
        memory_bytes=memory.bytes,
        openings=verdict.openings,
    )


def _run_parties(layout: RunLayout) -> tuple[int, float, PeakMemory]:
    """Run all parties; the coordinator's most memory and its time, and the most memory of all."""
    coordinator, auditor, *_ = party_children(layout)
    settings = [str(layout.site(site).settings) for site in layout.site_ids]
    many = Child(
        name=SITES_HOST,
        arguments=(sys.executable, "-m", "lada_lab.mock.many_sites", *settings),
        log=layout.root / "sites.txt",
        environment=coordinator.environment,
    )
    peak_bytes, cpu_s, memory = 0, 0.0, PeakMemory()

    def look() -> None:
        nonlocal peak_bytes, cpu_s
        groups = supervisor.groups
        if coordinator.name in groups and (usage := process_usage(groups[coordinator.name])):
            peak_bytes, cpu_s = max(usage.resident_bytes, peak_bytes), usage.cpu_s
        memory.sample(groups.values())

    with Supervisor() as supervisor:
        supervisor.run_all((coordinator, auditor, many), look)
    return peak_bytes, cpu_s, memory


def _events(path: Path, kind: type[E]) -> list[E]:
    events = (parse_event(line) for line in path.read_bytes().splitlines())
    return [event for event in events if isinstance(event, kind)]


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
