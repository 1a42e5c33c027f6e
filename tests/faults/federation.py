"""The study that the faults hit: the preset tiny, made as light as its parts allow."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from lada_lab.cache_folder import default_cache_dir
from lada_lab.mock.layout import RunLayout
from lada_lab.mock.preparation import child_environment, free_port, party_children, write_run
from lada_lab.mock.presets import Preset, preset_for
from lada_lab.mock.supervisor import Child, Supervisor
from lada_lab.mock.weights import prepare_missing
from lada_lab.worlds.federation import build_federation
from lada_lab.worlds.sites import FederationData, SiteData

POOL = 48
RECORDS = 60
HELD_OUT = 8
# Every time limit of a connection is short, so that seconds do what minutes do over a real link.
TRANSPORT = """
[transport]
connect_timeout_s = 4.0
answer_timeout_s = 4.0
keepalive_interval_s = 10.0
keepalive_timeout_s = 4.0
longest_pause_s = 2.0
"""


def light_preset(*, sites: int, rounds: int, seed: int, phase_timeout_s: float) -> Preset:
    """The study: every step of the protocol, few records, few gradient steps, a wide budget.

    The cap on epsilon is wide because every kill between a reservation and its commit is paid.
    """
    tiny = preset_for("tiny", sites=sites, rounds=rounds, seed=seed)
    if tiny.uplink is None:
        raise RuntimeError("the preset tiny has lost its uplink, which the faults must hit too")
    changes = {
        "privacy": tiny.privacy.model_copy(update={"epsilon_cap": 400.0}),
        "training": tiny.training.model_copy(update={"steps_per_round": 24, "expected_units": 6.0}),
        "distillation": tiny.distillation.model_copy(update={"pool_batch_size": 4}),
        "allocation": tiny.allocation.model_copy(update={"quota": 12}),
        "paths": tiny.paths.model_copy(update={"budget": 24, "attempts": 1}),
        "uplink": tiny.uplink.model_copy(
            update={
                "bar": 0.0,
                "holdout": 8,
                "candidates": 32,
                "budget": 8,
                "steps": 8,
                "batch_size": 4,
                "replay_batch_size": 4,
            }
        ),
        # A weak LLM: the sites come to know more in places, so that the LLM transfer has work.
        "llm": tiny.site_slm,
        "phase_timeout_s": phase_timeout_s,
    }
    return tiny.model_copy(update=changes)


def small_data(*, sites: int, seed: int) -> FederationData:
    """The data of tiny: few records, and the pool's shortest questions."""
    data = build_federation("tiny", sites=sites, seed=seed)
    return replace(
        data,
        pool=tuple(sorted(data.pool, key=lambda one: (len(one.question), one.sample_id))[:POOL]),
        sites={
            site: SiteData(train=one.train[:RECORDS], held_out=one.held_out[:HELD_OUT])
            for site, one in data.sites.items()
        },
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Federation:
    """Everything of a run but its processes. `port` is the coordinator's."""

    layout: RunLayout
    preset: Preset
    data: FederationData
    port: int
    environment: dict[str, str]
    cache_dir: Path

    @property
    def sites(self) -> tuple[str, ...]:
        """Ids of the sites."""
        return self.layout.site_ids

    @property
    def parties(self) -> tuple[str, ...]:
        """Ids of all parties, the coordinator first."""
        return tuple(self.layout.parties)

    @property
    def dialling(self) -> tuple[str, ...]:
        """Ids of the parties that dial: the auditor and the sites."""
        return tuple(one for one in self.parties if self.layout.parties[one].role != "coordinator")

    def child(self, party: str) -> Child:
        """The operator's command that runs one party; the same at every start."""
        children = party_children(self.layout)
        return next(one for one in children if one.name == party)

    def dial(self, party: str, port: int) -> None:
        """Let a party dial another port of loopback, where a relay listens."""
        path = self.layout.parties[party].settings
        old, new = f'"localhost:{self.port}"', f'"127.0.0.1:{port}"'
        text = path.read_text(encoding="utf-8")
        if text.count(old) != 1:
            raise RuntimeError(f"{path}: expected the coordinator's address {old} once")
        path.write_text(text.replace(old, new), encoding="utf-8")


def prepare(
    root: Path, *, sites: int, rounds: int, seed: int, phase_timeout_s: float
) -> Federation:
    """Write data, identities and settings of a run; start nothing.

    Raises: ParameterError, TransportError: as `lada mock run`.
    """
    preset = light_preset(sites=sites, rounds=rounds, seed=seed, phase_timeout_s=phase_timeout_s)
    environment = child_environment(os.environ)
    cache_dir = default_cache_dir(os.environ).absolute()
    data = small_data(sites=sites, seed=seed)
    layout = RunLayout(root=root, site_ids=tuple(data.sites))
    port = free_port(0)
    with Supervisor() as supervisor:
        prepare_missing(preset, supervisor, cache_dir=cache_dir)
    write_run(layout, preset, data, port=port, cache_dir=cache_dir)
    for folder in layout.parties.values():
        with folder.settings.open("a", encoding="utf-8") as file:
            file.write(TRANSPORT)
    return Federation(
        layout=layout,
        preset=preset,
        data=data,
        port=port,
        environment=environment,
        cache_dir=cache_dir,
    )
