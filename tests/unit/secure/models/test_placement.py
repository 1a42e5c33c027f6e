"""Where a model's weights lie: what a machine cannot do is refused before a weight is read."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from lada_secure.errors import ParameterError
from lada_secure.models import placement
from lada_secure.models.loading import (
    _check_on_devices,
    _load_options,
    load_folder,
    load_language_model,
)
from lada_secure.models.placement import Placement
from lada_secure.models.weight_checks import check_finite, stored_tensors


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


def test_weights_that_will_be_packed_are_looked_at_as_they_are_stored(tmp_path):
    tensors = {"whole": torch.ones(3), "broken": torch.tensor([1.0, float("nan")])}
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ParameterError, match="1 tensors hold NaN or infinity: broken"):
        check_finite(tmp_path, stored_tensors(tmp_path))


def test_a_part_that_was_left_off_the_devices_is_refused_by_name(tiny_slm, tmp_path):
    spread = SimpleNamespace(hf_device_map={"model.embed": 0, "model.layers.1": "cpu"})
    on_gpus = Placement(device="cuda", device_map="auto")
    with pytest.raises(ParameterError, match=r"1 parts .* do not fit .* model\.layers\.1;"):
        _check_on_devices(tmp_path, spread, on_gpus)
    _check_on_devices(tmp_path, tiny_slm.model, Placement(device="cpu"))


@pytest.mark.parametrize(
    ("placement", "told"),
    [
        (Placement(device="cpu"), {"dtype": torch.float32}),
        (
            Placement(device="cuda:1", dtype="bfloat16"),
            {"dtype": torch.bfloat16, "device_map": {"": torch.device("cuda:1")}},
        ),
        (
            Placement(device="cuda", device_map="auto"),
            {"dtype": torch.float32, "device_map": "auto"},
        ),
    ],
)
def test_what_transformers_is_told(placement, told):
    assert _load_options(placement) == told


@pytest.mark.parametrize(("name", "bits"), [("4bit", 4), ("8bit", 8)])
def test_packed_weights_are_asked_of_bitsandbytes_in_the_type_of_the_settings(name, bits):
    placement = Placement(device="cuda", dtype="bfloat16", quantization=name)
    told = _load_options(placement)["quantization_config"]
    assert (told.load_in_4bit, told.load_in_8bit) == (bits == 4, bits == 8)
    if bits == 4:
        assert told.bnb_4bit_compute_dtype == torch.bfloat16
        assert told.bnb_4bit_quant_type == "nf4"


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes"])
def test_a_folder_that_is_packed_already_is_refused_before_the_machine_is_asked(tmp_path, method):
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "llama", "quantization_config": {"quant_method": method}})
    )
    with pytest.raises(ParameterError, match=rf"its weights are quantised \({method}\)"):
        load_folder(
            tmp_path, name="packed", placement=Placement(device="cuda:99", quantization="4bit")
        )
