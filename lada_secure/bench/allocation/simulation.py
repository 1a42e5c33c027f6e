"""One arm in one world: a whole study in one process, without sockets and without encryption.

Sums and blind scores are computed in the clear here. Under encryption they are the same numbers
(sums exactly, scores up to 1e-5), so the allocation is the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lada_secure.bench.allocation.arms import Arm
from lada_secure.bench.allocation.coordinator import Coordinator
from lada_secure.bench.allocation.guides import SiteReleases
from lada_secure.bench.allocation.models import (
    LLM_PRETRAINING,
    SLM_PRETRAINING,
    bench_model,
)
from lada_secure.bench.allocation.party import Party
from lada_secure.bench.allocation.study import StudySettings, study_noise
from lada_secure.bench.allocation.world import BenchData, build_data
from lada_secure.distillation.adapters import AdapterSettings, attach_adapters
from lada_secure.distillation.models import LanguageModel, load_folder
from lada_secure.privacy.units import bound_units


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One arm in one world. accuracy: mean over sites; by_site: each; details: for reading."""

    condition: str
    epsilon: float | None
    seed: int
    accuracy: float
    by_site: tuple[float, ...]
    llm_accuracy: float | None
    cpu_s: float
    details: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedWorld:
    """Data and model folders of one seed."""

    data: BenchData
    slm: Path
    llm: Path
    seed: int


def prepare(settings: StudySettings, *, seed: int, cache_dir: Path) -> PreparedWorld:
    """Build the data, and train the two models where the cache does not have them."""
    return PreparedWorld(
        data=build_data(settings.world, seed=seed),
        slm=bench_model(settings.world, SLM_PRETRAINING, seed=seed, cache_dir=cache_dir),
        llm=bench_model(settings.world, LLM_PRETRAINING, seed=seed, cache_dir=cache_dir),
        seed=seed,
    )


def open_coordinator(prepared: PreparedWorld, settings: StudySettings) -> Coordinator:
    """Load the LLM and look at the pool; serves all arms that do not change the LLM."""
    return Coordinator.open(prepared.data, settings, load_folder(prepared.llm, name="bench-llm"))


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
        return cls(
            prepared=prepared,
            settings=settings,
            coordinator=open_coordinator(prepared, settings),
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

    def simulate(
        self, arm: Arm, *, epsilon: float, progress: Callable[[str], None] | None = None
    ) -> Outcome:
        """Run all rounds of one arm and measure it on held-out records."""
        started = time.process_time()
        spent = epsilon if arm.privacy == "dp" else None
        parties = [
            Party(
                arm=arm,
                settings=self.settings,
                releases=releases,
                coordinator=self.coordinator,
                lm=self.lm,
                seed=releases.seed,
                student=releases.reference,
            )
            for releases in self.releases(spent)
        ]
        for round_id in range(self.settings.rounds):
            wanted = [party.choose(round_id) for party in parties]
            for party, places in zip(parties, wanted, strict=True):
                party.train(round_id, self.coordinator.write(places))
            if progress is not None:
                progress(f"seed {self.prepared.seed}, {arm.name}: round {round_id + 1} done")
        by_site = tuple(party.accuracy() for party in parties)
        return Outcome(
            condition=arm.name,
            epsilon=spent,
            seed=self.prepared.seed,
            accuracy=sum(by_site) / len(by_site),
            by_site=by_site,
            llm_accuracy=None,
            cpu_s=time.process_time() - started,
            details={party.releases.site.name: party.reports for party in parties},
        )


def _fresh_slm(prepared: PreparedWorld, settings: StudySettings) -> LanguageModel:
    lm = load_folder(prepared.slm, name="bench-slm")
    return attach_adapters(
        lm,
        AdapterSettings(
            rank=settings.adapter_rank,
            alpha=2.0 * settings.adapter_rank,
            target_modules=settings.adapter_targets,
            seed=prepared.seed,
        ),
    )
