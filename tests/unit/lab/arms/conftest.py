"""One very small world with models that have hardly learned, made once per test session."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lada_lab.arms.simulation import Laboratory, PreparedWorld
from lada_lab.arms.study import StudySettings
from lada_lab.worlds.bench_models import LLM_PRETRAINING, SLM_PRETRAINING, bench_model
from lada_lab.worlds.chain_world import WorldSettings, build_data

# Two threads on a busy machine wait for each other longer than these models compute.
torch.set_num_threads(1)

SEED = 7


@pytest.fixture(scope="session")
def small_settings() -> StudySettings:
    """One round of three picks per site, on 36 records a site and 60 pool samples."""
    return StudySettings(
        rounds=1,
        quota=3,
        private_steps=(2,),
        pool_steps=2,
        final_steps=3,
        joint_steps=2,
        # Every unit in every step: its noise is quick to calibrate.
        expected_units=60.0,
        pool_batch_size=4,
        own_paths=1,
        adapter_rank=2,
        adapter_targets=("q_proj", "v_proj"),
        contrastive_weight=0.0,
        attempts=1,
        clusters=4,
        threshold=0.01,
        uplink_budget=6,
        uplink_steps=2,
        world=WorldSettings(private=36, held_out=10, pool=50),
    )


@pytest.fixture(scope="session")
def small_models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of an SLM that knows nothing yet and an LLM that solves about every third sample."""
    folder = tmp_path_factory.mktemp("bench-models")
    world = WorldSettings(private=36, held_out=10, pool=50)
    slm, llm = (
        bench_model(world, replace(one, steps=steps, batch_size=24), seed=SEED, cache_dir=folder)
        for one, steps in ((SLM_PRETRAINING, 40), (LLM_PRETRAINING, 160))
    )
    return slm, llm


@pytest.fixture(scope="session")
def prepared(small_settings: StudySettings, small_models: tuple[Path, Path]) -> PreparedWorld:
    """Data and models of one seed."""
    return PreparedWorld(
        data=build_data(small_settings.world, seed=SEED),
        slm=small_models[0],
        llm=small_models[1],
        seed=SEED,
    )


@pytest.fixture(scope="session")
def laboratory(prepared: PreparedWorld, small_settings: StudySettings) -> Laboratory:
    """All arms' common ground."""
    return Laboratory.open(prepared, small_settings)
