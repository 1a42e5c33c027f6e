"""One very small world with models that have hardly learned, made once per test session."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_study import CHANGES, SEED

from lada_lab.arms.presets import bench_settings
from lada_lab.arms.simulation import Laboratory, PreparedWorld
from lada_lab.arms.study import LabSettings
from lada_lab.worlds.bench_models import LLM_PRETRAINING, SLM_PRETRAINING, bench_model
from lada_lab.worlds.chain_world import WorldSettings, build_data

# Two threads on a busy machine wait for each other longer than these models compute.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def small_settings() -> LabSettings:
    return bench_settings("tiny", harmful=0.3, held_out=10, changes=CHANGES)


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
def prepared(small_settings: LabSettings, small_models: tuple[Path, Path]) -> PreparedWorld:
    """Data and models of one seed."""
    assert isinstance(small_settings.world, WorldSettings)
    return PreparedWorld(
        data=build_data(small_settings.world, seed=SEED),
        slm=small_models[0],
        llm=small_models[1],
        seed=SEED,
    )


@pytest.fixture(scope="session")
def laboratory(prepared: PreparedWorld, small_settings: LabSettings) -> Laboratory:
    """All arms' common ground."""
    return Laboratory.open(prepared, small_settings)
