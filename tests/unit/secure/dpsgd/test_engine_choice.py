"""Which engine trains a model, and the words for one that neither can train."""

import dataclasses

import pytest
import torch
from peft import LoraConfig, get_peft_model
from trainer_doubles import small_model

from lada_secure.dpsgd.engine import open_engine
from lada_secure.errors import ParameterError
from lada_secure.models.adapters import AdapterSettings, attach_adapters


def with_adapters(architecture):
    return attach_adapters(small_model(architecture), AdapterSettings(rank=3))


def test_auto_takes_the_fused_engine_for_plain_lora():
    lm = with_adapters("llama")
    engine = open_engine(lm.model, "auto")
    assert engine.name == "fused"
    engine.close()


def test_auto_takes_opacus_where_a_norm_is_trained_too():
    lm = with_adapters("gpt2")
    for name, one in lm.model.named_parameters():
        if "ln_1" in name:
            one.requires_grad_(True)
    engine = open_engine(lm.model, "auto")
    assert engine.name == "opacus"
    engine.close()


def test_naming_fused_there_says_which_parameter_stands_in_the_way():
    lm = with_adapters("gpt2")
    lm.model.base_model.model.transformer.h[1].ln_1.weight.requires_grad_(True)
    with pytest.raises(ParameterError, match=r"h\.1\.ln_1\.weight"):
        open_engine(lm.model, "fused")


def test_dora_is_no_plain_lora():
    lm = small_model("llama")
    config = LoraConfig(r=2, target_modules=["q_proj"], use_dora=True)
    lm = dataclasses.replace(lm, model=get_peft_model(lm.model, config))
    with pytest.raises(ParameterError, match="q_proj"):
        open_engine(lm.model, "fused")


def test_a_module_that_neither_engine_supports_is_named():
    class Scale(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.by = torch.nn.Parameter(torch.ones(3))

        def forward(self, x):
            return x * self.by

    model = torch.nn.Sequential(torch.nn.Linear(3, 3), Scale())
    with pytest.raises(ParameterError, match="1: no gradient sampler for Scale"):
        open_engine(model, "auto")


def test_batch_norm_is_refused_because_it_couples_rows():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
    with pytest.raises(ParameterError, match="mixes the rows"):
        open_engine(model, "auto")


def test_a_model_without_adapters_has_nothing_to_train():
    lm = small_model("llama")
    for one in lm.model.parameters():
        one.requires_grad_(False)
    with pytest.raises(ParameterError, match="attach_adapters"):
        open_engine(lm.model, "auto")
