"""Memory on a CUDA device: weights and a private step take what was forecast, within a fifth."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from architecture_doubles import family_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from lada_secure.dpsgd.engine import open_engine
from lada_secure.dpsgd.rehearsal import step_peak
from lada_secure.models.adapters import AdapterSettings, attach_adapters
from lada_secure.models.examples import TokenRow
from lada_secure.models.loading import load_folder
from lada_secure.models.memory import MemoryBudget, free_bytes, weight_bytes
from lada_secure.models.placement import Placement
from lada_secure.models.rationale_scoring import RationaleScorer
from lada_secure.models.rehearsal import Rehearsal

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

ADAPTERS = AdapterSettings(rank=8)
ROWS, LENGTH = 8, 256


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Llama of 6 layers of width 768, random weights."""
    at = tmp_path_factory.mktemp("models") / "one"
    tokenizer = family_tokenizer("Llama")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=6,
        num_attention_heads=12,
        num_key_value_heads=12,
    )
    LlamaForCausalLM(config).save_pretrained(at)
    tokenizer.save_pretrained(at)
    return at


def placements():
    yield Placement(device="cuda")
    yield Placement(device="cuda", dtype="bfloat16")
    yield Placement(device="cuda", dtype="bfloat16", gradient_checkpointing=True)
    if find_spec("bitsandbytes") is not None:
        for packed in ("8bit", "4bit"):
            yield Placement(device="cuda", dtype="bfloat16", quantization=packed)


@pytest.mark.parametrize("placement", list(placements()), ids=str)
def test_weights_and_a_step_take_what_was_forecast(folder, placement):
    place = placement.on_this_machine()
    rehearsal = Rehearsal(folder, place, ADAPTERS)
    peak = step_peak(rehearsal, rows=ROWS, length=LENGTH, privacy=None, cache_bytes=0)
    budget = MemoryBudget(folder=folder, rehearsal=rehearsal)
    budget.add("a step", peak)
    assert 0 < free_bytes(place) < torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    lm = attach_adapters(load_folder(folder, name="one", placement=place), ADAPTERS)
    weights = torch.cuda.memory_allocated() - before
    assert weights == pytest.approx(weight_bytes(rehearsal), rel=0.2)
    engine = open_engine(lm.model, "auto", checkpoints=place.gradient_checkpointing)
    scorer = RationaleScorer(lm.model, device=lm.device)
    rows = [TokenRow(tokens=(1,) * LENGTH, target_start=1)] * ROWS
    engine.gradients(1, [0] * ROWS, lambda: -scorer(rows).sum())
    torch.cuda.reset_peak_memory_stats()
    idle = torch.cuda.memory_allocated()
    engine.gradients(1, [0] * ROWS, lambda: -scorer(rows).sum())
    step = torch.cuda.max_memory_allocated() - idle
    engine.close()
    print(f"{placement}: weights {weights}, step {step}, rehearsed {peak.whole}")
    whole = budget.forecast().working
    assert weights + step == pytest.approx(whole, rel=0.2, abs=128 * 2**20)
