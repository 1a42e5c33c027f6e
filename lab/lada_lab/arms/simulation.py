"""One arm in one world: a whole study in one process, without sockets and without encryption.

Sums and blind scores are computed in the clear here. Under encryption they are the same numbers
(sums exactly, scores up to 1e-5), so the allocation is the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from lada_lab.arms.arms import Arm
from lada_lab.arms.baseline_rounds import open_baseline, separate_rounds, shared_round
from lada_lab.arms.coordinator import Coordinator
from lada_lab.arms.guides import SiteReleases
from lada_lab.arms.party import Party
from lada_lab.arms.study import StudySettings, study_noise
from lada_lab.arms.uplink import uplink
from lada_lab.worlds.bench_models import (
    LLM_PRETRAINING,
    SLM_PRETRAINING,
    bench_model,
)
from lada_lab.worlds.chain_world import build_data
from lada_lab.worlds.study_data import BenchData
from lada_lab.worlds.ward_models import LLM_TUNING, SLM_TUNING, ward_model
from lada_lab.worlds.wards import WardSettings, build_ward_data
from lada_secure.models.adapters import AdapterSettings, attach_adapters
from lada_secure.models.loading import LanguageModel, load_folder
from lada_secure.privacy.release.units import bound_units


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One arm in one world.

    accuracy: mean over sites of their students, by_site: each. llm_before, llm_accuracy: of the LLM
    on the sites' held-out records that are in the public's manner, before and after the study.
    details: per site, one report a round. uplinks: one report a round, without an LLM transfer
    none. cpu_s: of this arm alone; shared_cpu_s: spent meanwhile on releases that other arms use,
    too.
    """

    condition: str
    epsilon: float | None
    seed: int
    accuracy: float
    by_site: tuple[float, ...]
    llm_before: float
    llm_accuracy: float
    cpu_s: float
    shared_cpu_s: float
    details: dict[str, list[dict[str, int]]]
    uplinks: tuple[dict[str, int | bool], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedWorld:
    """Data and model folders of one seed."""

    data: BenchData
    slm: Path
    llm: Path
    seed: int


def prepare(settings: StudySettings, *, seed: int, cache_dir: Path) -> PreparedWorld:
    """Build the data, and train the two models where the cache does not have them."""
    world = settings.world
    if isinstance(world, WardSettings):
        return PreparedWorld(
            data=build_ward_data(world, seed=seed),
            slm=ward_model(world, SLM_TUNING, seed=seed, cache_dir=cache_dir),
            llm=ward_model(world, LLM_TUNING, seed=seed, cache_dir=cache_dir),
            seed=seed,
        )
    return PreparedWorld(
        data=build_data(world, seed=seed),
        slm=bench_model(world, SLM_PRETRAINING, seed=seed, cache_dir=cache_dir),
        llm=bench_model(world, LLM_PRETRAINING, seed=seed, cache_dir=cache_dir),
        seed=seed,
    )


def open_coordinator(prepared: PreparedWorld, settings: StudySettings) -> Coordinator:
    """Load the LLM, with adapters that change nothing yet, and cluster the pool."""
    llm = attach_adapters(
        load_folder(prepared.llm, name="bench-llm"), _adapters(prepared, settings)
    )
    return Coordinator.open(prepared.data, settings, llm)


@dataclass(slots=True, kw_only=True)
class Laboratory:
    """One world with everything that its arms share: coordinator, releases, one SLM."""

    prepared: PreparedWorld
    settings: StudySettings
    coordinator: Coordinator
    lm: LanguageModel
    _releases: dict[float | None, tuple[SiteReleases, ...]] = field(default_factory=dict)

    @classmethod
    def open(cls, prepared: PreparedWorld, settings: StudySettings) -> Laboratory:
        """Load both models and look at the pool."""
        torch.set_num_threads(1)
        coordinator = open_coordinator(prepared, settings)
        coordinator.look()
        return cls(
            prepared=prepared,
            settings=settings,
            coordinator=coordinator,
            lm=_fresh_slm(prepared, settings),
        )

    def releases(self, epsilon: float | None) -> tuple[SiteReleases, ...]:
        """All sites' releases at one epsilon; None: without privacy."""
        if epsilon not in self._releases:
            settings = self.settings
            found = []
            for number, site in enumerate(self.prepared.data.sites):
                units = bound_units(site.train, max_records_per_unit=settings.max_records_per_unit)
                found.append(
                    SiteReleases.open(
                        site,
                        settings,
                        None
                        if epsilon is None
                        else study_noise(settings, epsilon=epsilon, units=len(units)),
                        _fresh_slm(self.prepared, settings),
                        self.coordinator,
                        seed=1000 * self.prepared.seed + 10 * number,
                    )
                )
            self._releases[epsilon] = tuple(found)
        return self._releases[epsilon]

    @property
    def _release_cpu_s(self) -> float:
        return sum(one.cpu_s for found in self._releases.values() for one in found)

    def simulate(
        self, arm: Arm, *, epsilon: float, progress: Callable[[str], None] | None = None
    ) -> Outcome:
        """Run all rounds of one arm and measure it on held-out records."""
        started, shared = time.process_time(), self._release_cpu_s
        spent = epsilon if arm.privacy == "dp" else None
        # An LLM that learns serves its own arm alone.
        coordinator = (
            open_coordinator(self.prepared, self.settings) if arm.teaches_llm else self.coordinator
        )
        llm_before = coordinator.accuracy()
        host = None if arm.host is None else open_baseline(arm.host, coordinator, self.lm)
        parties = [
            Party.open(
                arm, self.settings, releases, coordinator, self.lm, epsilon=epsilon, host=host
            )
            for releases in self.releases(spent)
        ]
        uplinks: list[dict[str, int | bool]] = []
        for round_id in range(self.settings.rounds):
            received = [coordinator.write(party.choose(round_id)) for party in parties]
            if host is not None:
                carry_out = shared_round if arm.host == "fedcollm" else separate_rounds
                carry_out(host, coordinator, parties, received, round_id=round_id)
            else:
                for party, paths in zip(parties, received, strict=True):
                    party.train(round_id, paths)
            if round_id + 1 == self.settings.rounds:
                for party in parties:
                    party.finish()
            if arm.uplink and self.settings.transfer_in(round_id):
                report = uplink(coordinator, parties, self.settings, seed=self.prepared.seed)
                uplinks.append(report.to_json())
            if progress is not None:
                progress(f"seed {self.prepared.seed}, {arm.name}: round {round_id + 1} done")
        by_site = tuple(party.accuracy() for party in parties)
        accuracy = sum(by_site) / len(by_site)
        if progress is not None:
            progress(f"seed {self.prepared.seed}, {arm.name}: {accuracy:.1%}")
        return Outcome(
            condition=arm.name,
            epsilon=spent,
            seed=self.prepared.seed,
            accuracy=accuracy,
            by_site=by_site,
            llm_before=llm_before,
            llm_accuracy=coordinator.accuracy(),
            cpu_s=time.process_time() - started - (self._release_cpu_s - shared),
            shared_cpu_s=self._release_cpu_s - shared,
            details={party.releases.site.name: party.reports for party in parties},
            uplinks=tuple(uplinks),
        )


def _fresh_slm(prepared: PreparedWorld, settings: StudySettings) -> LanguageModel:
    return attach_adapters(
        load_folder(prepared.slm, name="bench-slm"), _adapters(prepared, settings)
    )


def _adapters(prepared: PreparedWorld, settings: StudySettings) -> AdapterSettings:
    return AdapterSettings(
        rank=settings.adapter_rank,
        alpha=2.0 * settings.adapter_rank,
        target_modules=settings.adapter_targets,
        last_layers=settings.adapter_layers or None,
        seed=prepared.seed,
    )
