"""The tiny preset's models, trained once per test session; logs that end with their test."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from lada_lab.mock.layout import RunLayout
    from lada_secure.models.loading import LanguageModel

SITES, SEED = 3, 0


@pytest.fixture(autouse=True)
def _logs_as_before() -> Iterator[None]:
    """Runners set up the logs of the whole process; the next test finds them as they were."""
    names = ("lada_secure", "lada_protocol", "lada_clients", "lada_server")
    before = [
        (logger, logger.handlers, logger.level, logger.propagate)
        for logger in map(logging.getLogger, names)
    ]
    yield
    for logger, handlers, level, propagate in before:
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


@pytest.fixture(scope="session")
def tiny_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    # Two threads on a busy machine wait for each other longer than these models compute.
    torch.set_num_threads(1)
    return tmp_path_factory.mktemp("tiny-models")


@pytest.fixture(scope="session")
def served_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model that tests serve over HTTP; see `completions_server`."""
    from completions_server import model_folder

    return model_folder(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="session")
def _written_run(tmp_path_factory: pytest.TempPathFactory) -> RunLayout:
    from checked_run import write_checked_run

    return write_checked_run(tmp_path_factory.mktemp("checked"))


@pytest.fixture
def checked_run(_written_run: RunLayout, tmp_path: Path) -> RunLayout:
    """Parties' folders and a model's, for a test to spoil; see `checked_run`."""
    root = shutil.copytree(_written_run.root.parent, tmp_path / "checked") / "run"
    return replace(_written_run, root=root)


@pytest.fixture(scope="session")
def tiny_slm(tiny_cache: Path) -> LanguageModel:

    return _tiny_model("slm", tiny_cache)


@pytest.fixture(scope="session")
def tiny_llm(tiny_cache: Path) -> LanguageModel:

    return _tiny_model("llm", tiny_cache)


def _tiny_model(role: str, cache_dir: Path) -> LanguageModel:
    from lada_lab.worlds.tiny_models import build_tiny_model
    from lada_secure.models.loading import load_language_model

    folder = build_tiny_model(cache_dir, role, sites=SITES, seed=SEED)
    return load_language_model(folder.name, cache_dir=cache_dir)
