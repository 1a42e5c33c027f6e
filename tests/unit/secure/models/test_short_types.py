"""A base in bfloat16: scores, options, paths and tuning work, stay finite and say the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from architecture_doubles import FAMILIES, family_folder

from lada_secure.data.records import PoolSample
from lada_secure.models.adapters import AdapterSettings, adapter_weights, attach_adapters
from lada_secure.models.evaluation import (
    cache_deviation,
    greedy_rationales,
    option_probabilities,
    rationale_log_probabilities,
)
from lada_secure.models.examples import RationaleExample
from lada_secure.models.forward import _log_probabilities
from lada_secure.models.loading import load_folder
from lada_secure.models.placement import Placement
from lada_secure.models.preflight import probe_model
from lada_secure.models.tuning import TuningSettings, tune_on_rationales

PROMPTS = ["A cough, what is it?\nAnswer:", "What is a loan?\nAnswer:"]
PATHS = [" It is a cold.", " Money that is lent."]
SAMPLE = PoolSample(sample_id="p", question="A cough?", choices=("cold", "loan"), answer="cold")


@pytest.fixture(scope="module", params=sorted(set(FAMILIES) - {"Mamba"}))
def models(request, tmp_path_factory):
    folder = family_folder(request.param, tmp_path_factory.mktemp("models") / "one")
    return [
        load_folder(folder, name="small", placement=Placement(device="cpu", dtype=dtype))
        for dtype in ("float32", "bfloat16")
    ]


def test_scores_options_and_paths_in_bfloat16_are_those_of_float32_up_to_its_rounding(models):
    wide, short = models
    probe_model(short, what="the model")
    assert cache_deviation(short) < 0.05
    exact, rounded = (
        rationale_log_probabilities(lm, PROMPTS, PATHS, batch_size=2).mean for lm in models
    )
    assert np.isfinite(rounded).all()
    np.testing.assert_allclose(rounded, exact, atol=0.1)
    shares = [option_probabilities(lm, [SAMPLE], batch_size=1)[0] for lm in models]
    np.testing.assert_allclose(shares[1], shares[0], atol=0.05)
    assert len(greedy_rationales(short, PROMPTS, batch_size=2, max_new_tokens=4)) == 2
    del wide


@pytest.mark.parametrize("checkpointing", [False, True])
def test_adapters_of_a_bfloat16_base_are_float32_and_learn(tmp_path, checkpointing):
    place = Placement(device="cpu", dtype="bfloat16", gradient_checkpointing=checkpointing)
    lm = load_folder(family_folder("Llama", tmp_path), name="small", placement=place)
    lm = attach_adapters(lm, AdapterSettings(rank=2))
    assert {one.dtype for one in lm.model.parameters() if one.requires_grad} == {torch.float32}
    examples = [
        RationaleExample(example_id=str(at), prompt=prompt, path=path, rejected=None)
        for at, (prompt, path) in enumerate(zip(PROMPTS, PATHS, strict=True))
    ]
    before = adapter_weights(lm)
    scored = rationale_log_probabilities(lm, PROMPTS, PATHS, batch_size=2).total.sum()
    settings = TuningSettings(steps=8, batch_size=2, replay_batch_size=0, learning_rate=0.05)
    assert tune_on_rationales(lm, examples, (), settings) != before
    after = rationale_log_probabilities(lm, PROMPTS, PATHS, batch_size=2).total.sum()
    assert after > scored + 1.0


def test_checkpointing_changes_no_weight_that_tuning_finds(tmp_path):
    folder = family_folder("Qwen3", tmp_path)
    examples = [
        RationaleExample(example_id="0", prompt=PROMPTS[0], path=PATHS[0], rejected=PATHS[1])
    ]
    settings = TuningSettings(steps=3, batch_size=1, replay_batch_size=0, learning_rate=0.01)
    found = []
    for checkpointing in (False, True):
        place = Placement(device="cpu", gradient_checkpointing=checkpointing)
        lm = attach_adapters(
            load_folder(folder, name="small", placement=place), AdapterSettings(rank=2)
        )
        found.append(tune_on_rationales(lm, examples, (), settings))
    assert found[0] == found[1]


def test_log_probabilities_are_of_float32_whatever_the_logits_are():
    # In bfloat16 it would be rounded to 10.8125.
    logits = torch.zeros(1, 1, 50_000, dtype=torch.bfloat16)
    found = _log_probabilities(logits, torch.zeros(1, 1, dtype=torch.long))
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(-np.log(50_000), abs=1e-4)
