"""What `distil` refuses, before anything is spent."""

from __future__ import annotations

import pytest
import torch
from trainer_doubles import (
    approved_ledger,
    small_model,
)
from training_runs import (
    POOL,
    adapted,
    parameters,
    reserved,
    run,
    settings,
)

from lada_secure.errors import ParameterError


class TestRefusedBeforeAnythingIsSpent:
    def refuse(self, message, **changes):
        book = approved_ledger()
        with pytest.raises(ParameterError, match=message):
            run(changes.pop("lm", None) or adapted(), book, **changes)
        assert not reserved(book)

    def test_a_model_whose_public_loss_is_not_a_number(self):
        lm = adapted()
        letter = lm.encode_prompt(POOL[0].prompt)[0]
        with torch.no_grad():
            next(lm.model.parameters())[letter] = float("nan")
        self.refuse("NaN or infinity before training; nothing was spent", lm=lm)

    def test_a_model_whose_weights_are_not_numbers_without_any_pool(self):
        lm = adapted()
        with torch.no_grad():
            next(lm.model.parameters()).fill_(float("nan"))
        self.refuse("made-up tokens is NaN", lm=lm, pool=())

    def test_a_module_that_neither_engine_supports(self):
        lm = adapted()
        norm = lm.model.base_model.model.model.layers[1].input_layernorm
        norm.weight.requires_grad_(True)
        norm.register_parameter("shift", torch.nn.Parameter(torch.zeros(1)))
        self.refuse(r"layers\.1\.input_layernorm.*no gradient sampler", lm=lm)

    def test_a_model_without_adapters(self):
        lm = small_model()
        for one in lm.model.parameters():
            one.requires_grad_(False)
        self.refuse("adapters", lm=lm)

    def test_adapters_in_a_short_type(self):
        lm = adapted()
        for one in lm.model.parameters():
            if one.requires_grad:
                one.data = one.data.bfloat16()
        self.refuse("lora_A.default.weight is torch.bfloat16, expected float32", lm=lm)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("noise_multiplier", 0.0),
        ("noise_multiplier", float("nan")),
        ("noise_multiplier", 5000.0),
        ("l2_clip_norm", 0.0),
        ("l2_clip_norm", float("inf")),
        ("sampling_probability", 0.0),
        ("sampling_probability", 1.5),
        ("expected_units", 0.0),
        ("steps", 0),
        ("pool_gradients", "both"),
    ],
)
def test_privacy_parameters_out_of_range_are_refused(field, value):
    with pytest.raises(ParameterError):
        parameters(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("engine", "fast"),
        ("noise", "never"),
        ("physical_batch_size", 0),
        ("pool_batch_size", -1),
        ("steps_per_reservation", 0),
        ("private_weight", -1.0),
        ("learning_rate", 0.0),
        ("threads", 0),
    ],
)
def test_trainer_settings_out_of_range_are_refused(field, value):
    with pytest.raises(ParameterError, match=field):
        settings(**{field: value})
