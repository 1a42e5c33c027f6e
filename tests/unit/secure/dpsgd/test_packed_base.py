"""A base packed by bitsandbytes: both engines give the gradients of autograd on each unit alone.

The library is an extra; where it is not installed this file is skipped.
"""

from __future__ import annotations

import logging

import pytest
import torch

pytest.importorskip("bitsandbytes")

from packed_doubles import packed, wide_llama
from trainer_doubles import (
    character_tokenizer,
    grid_sum,
    opened_trainer,
    stir_adapters,
    units_of_sizes,
)

from lada_secure.dpsgd.engine import open_engine
from lada_secure.dpsgd.engine_fused import FusedEngine
from lada_secure.dpsgd.engine_probe import probe_engine
from lada_secure.dpsgd.parameters import DpSgdParameters, TrainerSettings
from lada_secure.models.adapters import AdapterSettings, attach_adapters
from lada_secure.models.examples import encode_row
from lada_secure.models.loading import LanguageModel
from lada_secure.models.rationale_scoring import RationaleScorer

UNITS = units_of_sizes(2, 1, 3, own=False)
UNIT_OF_ROW = [at for at, unit in enumerate(UNITS) for _ in unit.examples]
PRIVACY = DpSgdParameters(
    noise_multiplier=1.0,
    l2_clip_norm=0.05,
    sampling_probability=1.0,
    expected_units=3.0,
    steps=2,
    pool_gradients="public",
)


@pytest.fixture(autouse=True)
def _quiet(caplog):
    # The library tells every pass that it casts.
    caplog.set_level(logging.ERROR)


def adapted(how):
    lm = LanguageModel(
        model=packed(wide_llama(), how),
        tokenizer=character_tokenizer(),
        name=how,
        max_tokens=64,
    )
    lm = attach_adapters(lm, AdapterSettings(rank=2))
    stir_adapters(lm)
    return lm


def rows_of(lm, units):
    return [encode_row(lm, one.prompt, one.path) for unit in units for one in unit.examples]


def autograd_alone(lm, unit):
    scorer = RationaleScorer(lm.model, device=torch.device("cpu"))
    trained = [one for one in lm.model.parameters() if one.requires_grad]
    return torch.autograd.grad(-scorer(rows_of(lm, [unit])).sum(), trained)


@pytest.mark.parametrize("checkpoints", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("engine", ["fused", "opacus"])
@pytest.mark.parametrize("how", ["4bit", "8bit"])
def test_gradients_of_units_alone_are_those_of_autograd(how, engine, checkpoints):
    lm = adapted(how)
    expected = [autograd_alone(lm, unit) for unit in UNITS]
    opened = open_engine(lm.model, engine, checkpoints=checkpoints)
    scorer = RationaleScorer(lm.model, device=torch.device("cpu"))
    assert not scorer.is_float32
    for unit, wanted in zip(UNITS, expected, strict=True):
        rows = rows_of(lm, [unit])
        found, _ = opened.gradients(1, [0] * len(rows), lambda rows=rows: -scorer(rows).sum())
        for one, other in zip(found, wanted, strict=True):
            assert float(other.norm()) > 0.0
            assert float((one[0] - other).norm()) <= 1e-3 * float(other.norm())
    opened.close()


@pytest.mark.parametrize("how", ["4bit", "8bit"])
def test_auto_takes_the_fused_engine_and_the_probe_agrees_with_it(how):
    lm = adapted(how)
    engine = open_engine(lm.model, "auto")
    assert isinstance(engine, FusedEngine)
    assert len(engine._patched) == 4
    engine.close()
    probe_engine(lm, "auto")


@pytest.mark.parametrize("how", ["4bit", "8bit"])
def test_a_private_step_moves_every_b_and_no_unit_moves_the_sum_by_more_than_it_may(how):
    lm = adapted(how)
    before = {
        name: one.detach().clone() for name, one in lm.model.named_parameters() if "lora_B" in name
    }
    trainer = opened_trainer(
        lm, UNITS, pool=(), privacy=PRIVACY, settings=TrainerSettings(physical_batch_size=8)
    )
    units = list(trainer._units)
    whole = grid_sum(trainer, units).integers()
    for unit in units:
        change = whole - grid_sum(trainer, [one for one in units if one is not unit]).integers()
        assert sum(int(one) ** 2 for one in change.tolist()) <= PRIVACY.clip_steps**2
        assert torch.equal(change, grid_sum(trainer, [unit]).integers())
    trainer.step()
    trainer.close()
    after = dict(lm.model.named_parameters())
    assert before
    assert all(not torch.equal(one, after[name]) for name, one in before.items())
