"""Memory forecasts: weights to the byte, computations on models without numbers."""

from __future__ import annotations

import pytest
import torch
from architecture_doubles import FAMILIES, family_folder

from lada_secure.models.adapters import AdapterSettings
from lada_secure.models.folder import read_json
from lada_secure.models.loading import load_folder
from lada_secure.models.memory import (
    generation_bytes,
    option_bytes,
    scoring_bytes,
    tuning_bytes,
    weight_bytes,
)
from lada_secure.models.placement import Placement
from lada_secure.models.rehearsal import Rehearsal


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def folder(request, tmp_path_factory):
    return family_folder(request.param, tmp_path_factory.mktemp("models") / "one")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_weights_part_is_what_a_loaded_model_holds_to_the_byte(folder, dtype):
    place = Placement(device="cpu", dtype=dtype)
    model = load_folder(folder, name="small", placement=place).model
    held = sum(one.nbytes for one in (*model.parameters(), *model.buffers()))
    assert weight_bytes(Rehearsal(folder, place)) == held


def test_every_family_is_rehearsed_without_a_weight(folder, monkeypatch):
    def never(*_, **__):
        raise AssertionError("weights were read")

    monkeypatch.setattr("safetensors.safe_open", never)
    mamba = read_json(folder / "config.json")["model_type"] == "mamba"
    adapters = AdapterSettings(rank=2, target_modules=("in_proj",) if mamba else ())
    rehearsal = Rehearsal(folder, Placement(device="cpu"), adapters)
    sizes = {
        "scores": scoring_bytes(rehearsal, rows=4, length=32, target=8),
        "options": option_bytes(rehearsal, questions=2, options=3, prompt=24, option=4),
        "writing": generation_bytes(rehearsal, rows=2, prompt=16, written=8),
        "tuning": tuning_bytes(rehearsal, rows=4, length=32, cache_bytes=0),
    }
    print(sizes)
    assert all(size > 10_000 for size in sizes.values())
    twice = tuning_bytes(rehearsal, rows=8, length=32, cache_bytes=0)
    assert 1.5 < twice / sizes["tuning"] < 2.5
    assert all(one.device == torch.device("cpu") for one in rehearsal.model.parameters())
