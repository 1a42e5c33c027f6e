"""Memory forecasts: weights to the byte, computations on models without numbers."""

from __future__ import annotations

import pytest
import torch
from architecture_doubles import FAMILIES, family_folder
from torch._subclasses.fake_tensor import FakeTensorMode

from lada_secure.dpsgd.parameters import DpSgdParameters
from lada_secure.dpsgd.rehearsal import step_peak
from lada_secure.errors import ParameterError
from lada_secure.models import memory
from lada_secure.models.adapters import AdapterSettings
from lada_secure.models.folder import read_json
from lada_secure.models.forward import _log_probabilities
from lada_secure.models.loading import load_folder
from lada_secure.models.memory import (
    MemoryBudget,
    MemoryForecast,
    check_memory,
    fits_easily,
    generation_peak,
    option_peak,
    scoring_peak,
    tuning_peak,
    weight_bytes,
)
from lada_secure.models.placement import Placement
from lada_secure.models.rehearsal import LiveBytes, Rehearsal
from lada_secure.models.weight_checks import is_finite

PRIVACY = DpSgdParameters(
    noise_multiplier=1.0,
    l2_clip_norm=0.5,
    sampling_probability=1.0,
    expected_units=8.0,
    steps=1,
    pool_gradients="public",
)


# The rehearsal of a scan takes longest.
_SCANS = {"Falcon-H1": pytest.mark.slow, "Mamba": pytest.mark.slow}


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=_SCANS.get(name, ())) for name in sorted(FAMILIES)],
)
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
        "scores": scoring_peak(rehearsal, rows=4, length=32, target=8),
        "options": option_peak(rehearsal, questions=2, options=3, prompt=24, option=4),
        "writing": generation_peak(rehearsal, rows=2, prompt=16, written=8),
        "tuning": tuning_peak(rehearsal, rows=4, length=32, cache_bytes=0),
    }
    print(sizes)
    assert all(size.whole >= size.small > 10_000 for size in sizes.values())
    twice = tuning_peak(rehearsal, rows=8, length=32, cache_bytes=0)
    assert 1.5 < twice.whole / sizes["tuning"].whole < 2.5
    assert all(one.device == torch.device("cpu") for one in rehearsal.model.parameters())


@pytest.mark.parametrize("core", [pytest.param("seed", marks=pytest.mark.slow), "weights"])
def test_cores_are_rehearsed_without_a_weight(folder, core, monkeypatch):
    mamba = read_json(folder / "config.json")["model_type"] == "mamba"
    chosen = {"rank": 2, "target_modules": ("in_proj",) if mamba else ()}

    def never(*_, **__):
        raise AssertionError("weights were read, or factors computed")

    lora = Rehearsal(folder, Placement(device="cpu"), AdapterSettings(**chosen))
    monkeypatch.setattr("safetensors.safe_open", never)
    monkeypatch.setattr("torch.linalg.qr", never)
    rehearsal = Rehearsal(
        folder, Placement(device="cpu"), AdapterSettings(**chosen, core=core, train_a=False)
    )
    # Two matrices of an adapter become one of rank by rank, and both factors stay.
    assert set(rehearsal.trained) == {2 * 2}
    assert 2 * len(rehearsal.trained) == len(lora.trained)
    assert rehearsal.frozen_in_adapters == sum(lora.trained)
    assert lora.frozen_in_adapters == 0
    peaks = [
        step_peak(one, rows=4, length=32, privacy=PRIVACY, cache_bytes=0).whole
        for one in (rehearsal, lora)
    ]
    assert 10_000 < peaks[0] <= peaks[1]


def counted(work):
    """The most bytes that a computation on tensors without numbers has alive."""
    live = LiveBytes()
    with FakeTensorMode(), live:
        work()
    return live.peak.whole


def test_what_is_alive_is_counted_and_what_is_freed_is_not():
    def work():
        kept = torch.empty(1000)
        for _ in range(10):
            kept = kept + 1.0
        view = kept.view(10, 100)
        return view.sum()

    # Two of 4,000 bytes at a time; ten were made. Every answer to a question is yes.
    assert 8000 <= counted(work) <= 8100


def test_looking_for_nan_takes_little_beside_the_weights():
    def work():
        assert is_finite(torch.empty(2**26))

    assert counted(work) < 1.2 * 4 * 2**26


def test_scores_take_no_second_copy_of_all_logits():
    def work():
        logits = torch.empty(16, 20, 5000)
        _log_probabilities(logits, torch.zeros(16, 20, dtype=torch.long))

    assert counted(work) < 1.2 * 16 * 20 * 5000 * 4


def forecast(**changes):
    values = {
        "device": "the CPU",
        "lasting": {"this process": 500, "weights": 1500},
        "passing": {"a step": 700, "scores": 900},
        "loading": 800,
        "free": 2000,
        "here": 500,
    }
    return MemoryForecast(**{**values, **changes})


def test_a_forecast_adds_what_stays_and_takes_the_largest_of_what_passes():
    found = forecast()
    assert (found.working, found.peak, found.more) == (2900, 2900, 2400)
    assert forecast(passing={}).peak == 2800
    assert found.largest == ("scores", 900)


@pytest.mark.parametrize(
    ("free", "faulty", "warned"),
    [(2399, True, False), (2400, False, True), (2999, False, True), (3100, False, False)],
)
def test_a_forecast_is_compared_with_what_is_free(free, faulty, warned):
    found = forecast(free=free)
    assert (found.fault() is not None, found.warning() is not None) == (faulty, warned)


def test_a_refusal_has_numbers_and_what_to_lower():
    big = forecast(lasting={"this process": 500, "weights": 16 * 10**9}, free=8 * 10**9)
    with pytest.raises(ParameterError) as refused:
        check_memory(big, what="the SLM", lower="Name a smaller model")
    told = str(refused.value)
    for words in ("the SLM does not fit", "16.0 GB", "8.0 GB are free", "Name a smaller model"):
        assert words in told


def test_packed_weights_are_counted_by_bits_and_the_head_is_not_packed(tmp_path):
    folder = family_folder("Llama", tmp_path)
    whole, packed = (
        weight_bytes(Rehearsal(folder, Placement(device="cpu"))),
        Rehearsal(folder, Placement(device="cpu")),
    )
    packed.placement = Placement(device="cuda", quantization="4bit")
    linear = sum(count for count, _, is_linear in packed.sizes.values() if is_linear)
    # Two layers: q and o 32 x 32, k and v 16 x 32, and three of 64 x 32.
    assert linear == 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 64 * 32)
    assert weight_bytes(packed) == pytest.approx(whole - linear * (4 - 0.516), abs=100)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_private_step_is_rehearsed_with_its_units(tmp_path, checkpointing):
    folder = family_folder("Qwen3", tmp_path)
    place = Placement(device="cpu", gradient_checkpointing=checkpointing)
    rehearsal = Rehearsal(folder, place, AdapterSettings(rank=2))
    few, many = (
        step_peak(rehearsal, rows=rows, length=64, privacy=PRIVACY, cache_bytes=0).whole
        for rows in (4, 16)
    )
    assert 2.0 < many / few < 5.0
    alone = step_peak(rehearsal, rows=16, length=64, privacy=None, cache_bytes=0).whole
    assert alone <= many


def test_checkpointing_takes_less(tmp_path):
    folder = family_folder("Llama", tmp_path)
    whole, less = (
        tuning_peak(
            Rehearsal(
                folder,
                Placement(device="cpu", gradient_checkpointing=checkpointing),
                AdapterSettings(rank=2),
            ),
            rows=16,
            length=64,
            cache_bytes=0,
        ).whole
        for checkpointing in (False, True)
    )
    assert less < 0.75 * whole


def test_what_fits_easily_takes_a_tenth_at_most_of_what_is_free(folder, monkeypatch):
    """No batch may pass without a rehearsal that a rehearsal would refuse, or warn of."""
    place = Placement(device="cpu")
    adapters = AdapterSettings(rank=8, target_modules=("in_proj",) if is_mamba(folder) else ())
    for rows, length in ((1, 32), (16, 64)):
        monkeypatch.setattr(memory, "free_bytes", lambda _: 2**62)
        assert fits_easily(folder, place, rows=rows, length=length) or is_mamba(folder)
        least = smallest_free(monkeypatch, folder, rows=rows, length=length)
        budget = MemoryBudget(folder=folder, rehearsal=Rehearsal(folder, place, adapters))
        peak = step_peak(budget.rehearsal, rows=rows, length=length, privacy=PRIVACY, cache_bytes=0)
        budget.add("a step", peak)
        assert budget.forecast().more < least / 10


def is_mamba(folder):
    return read_json(folder / "config.json")["model_type"] == "mamba"


def smallest_free(monkeypatch, folder, *, rows, length):
    """The fewest bytes, by powers of two, that let a model pass without a rehearsal."""
    for power in range(20, 63):
        monkeypatch.setattr(memory, "free_bytes", lambda _, free=2**power: free)
        if fits_easily(folder, Placement(device="cpu"), rows=rows, length=length):
            return 2**power
    return 2**63


def test_a_gpu_and_packed_weights_are_always_rehearsed(tmp_path, monkeypatch):
    folder = family_folder("Llama", tmp_path)
    monkeypatch.setattr(memory, "free_bytes", lambda _: 2**62)
    for place in (Placement(device="cuda"), Placement(device="cpu", quantization="8bit")):
        assert not fits_easily(folder, place, rows=1, length=2)
