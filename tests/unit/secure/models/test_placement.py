"""Where a model's weights lie: what a machine cannot do is refused before a weight is read."""

from __future__ import annotations

import pytest
import torch

from lada_secure.errors import ParameterError
from lada_secure.models import placement
from lada_secure.models.loading import load_language_model
from lada_secure.models.placement import Placement


def machine(monkeypatch, *, devices, bitsandbytes=True):
    """Torch sees so many CUDA devices; there are none here, so what is under test is the choice."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: devices > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    monkeypatch.setattr(placement, "find_spec", lambda _: object() if bitsandbytes else None)


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"device": "abacus"}, "expected auto, cpu, cuda or cuda:N"),
        ({"device": "cuda:-1"}, "expected auto, cpu, cuda or cuda:N"),
        ({"device": "cuda:1\n"}, "expected auto, cpu, cuda or cuda:N"),
        ({"dtype": "float16"}, "dtype: expected one of float32, bfloat16"),
        ({"quantization": "2bit"}, "quantization: expected one of 8bit, 4bit"),
        ({"device_map": "balanced"}, "device_map: expected one of auto"),
        ({"device_map": "auto", "device": "cuda:0"}, "leave one of them out"),
        ({"device_map": "auto", "device": "cpu"}, "leave one of them out"),
    ],
)
def test_what_no_machine_can_do(wanted, words):
    with pytest.raises(ParameterError, match=words):
        Placement(**wanted)


@pytest.mark.parametrize(
    ("devices", "wanted", "words"),
    [
        (0, {"device": "cuda"}, "torch sees no CUDA devices"),
        (2, {"device": "cuda:2"}, "'cuda:2', but torch sees 2 CUDA devices"),
        (0, {"device_map": "auto"}, "at least two CUDA devices, torch sees none"),
        (1, {"device_map": "auto"}, "at least two CUDA devices, torch sees 1"),
        (0, {"quantization": "4bit"}, "4bit weights are computed with on CUDA devices alone"),
        (1, {"quantization": "8bit", "device": "cpu"}, "8bit weights .* alone"),
    ],
)
def test_what_this_machine_cannot_do(monkeypatch, devices, wanted, words):
    machine(monkeypatch, devices=devices)
    with pytest.raises(ParameterError, match=words):
        Placement(**wanted).on_this_machine()


def test_quantization_without_its_library_names_the_extra(monkeypatch):
    machine(monkeypatch, devices=1, bitsandbytes=False)
    with pytest.raises(ParameterError, match="extra 'quantized'"):
        Placement(quantization="4bit").on_this_machine()


@pytest.mark.parametrize(
    ("devices", "wanted", "chosen"),
    [
        (0, {}, "cpu"),
        (1, {}, "cuda"),
        (1, {"device": "cpu"}, "cpu"),
        (2, {"device": "cuda:1"}, "cuda:1"),
        (2, {"device_map": "auto", "quantization": "4bit"}, "cuda"),
    ],
)
def test_the_device_is_chosen_by_what_is_there(monkeypatch, devices, wanted, chosen):
    machine(monkeypatch, devices=devices)
    assert Placement(**wanted).on_this_machine().device == chosen


def test_a_placement_is_refused_before_a_weight_is_read(tiny_slm, tiny_cache, monkeypatch):
    def never(*_, **__):
        raise AssertionError("weights were read")

    monkeypatch.setattr("lada_secure.models.loading.AutoModelForCausalLM.from_pretrained", never)
    with pytest.raises(ParameterError, match="quantization"):
        load_language_model(
            tiny_slm.name,
            cache_dir=tiny_cache,
            placement=Placement(device="cpu", quantization="4bit"),
        )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_says_where_it_is(tiny_slm, tiny_cache, dtype):
    wanted = Placement(device="cpu", dtype=dtype)
    lm = load_language_model(tiny_slm.name, cache_dir=tiny_cache, placement=wanted)
    assert lm.placement == wanted
    assert {one.dtype for one in lm.model.parameters()} == {wanted.torch_dtype}
    assert lm.device == torch.device("cpu")
