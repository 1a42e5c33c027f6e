"""Cores: a small trained matrix between two public, frozen factors."""

from __future__ import annotations

import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.torch import load
from trainer_doubles import ARCHITECTURES, small_model, stir_adapters

from lada_secure.errors import ParameterError
from lada_secure.models.adapters import (
    AdapterSettings,
    adapter_weights,
    attach_adapters,
    load_adapters,
    parameter_count,
    parse_adapter_tensors,
    save_as_lora,
)
from lada_secure.models.cores import CoreAndBasis, top_singular_vectors
from lada_secure.models.reference_model import scaled_adapters

FACTORS = ("seed", "weights")
TOKENS = torch.tensor([[5, 6, 7, 8]])


def adapted(architecture="llama", *, core="seed", rank=4, seed=3, **changes):
    chosen = AdapterSettings(rank=rank, core=core, train_a=False, seed=seed, **changes)
    return attach_adapters(small_model(architecture), chosen)


def logits(lm):
    return lm.model(input_ids=TOKENS).logits.detach()


def adapted_layers(lm):
    """Weights (out, in), A0, R and B0 of every adapted layer."""
    for layer in lm.model.modules():
        if hasattr(layer, "lora_B") and hasattr(layer, "get_base_layer"):
            b = layer.lora_B["default"]
            weight = layer.get_base_layer().weight
            # GPT-2 keeps its weights the other way round.
            weight = weight.T if lm.name == "gpt2" else weight
            yield weight, layer.lora_A["default"].weight, b.core, b.basis


@pytest.mark.parametrize("core", FACTORS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_initial_model_is_the_base_model(architecture, core):
    assert torch.equal(logits(adapted(architecture, core=core)), logits(small_model(architecture)))


@pytest.mark.parametrize("core", FACTORS)
def test_a_core_of_rank_by_rank_is_trained_and_nothing_else(core):
    lm = adapted(core=core)
    trained = [name for name, one in lm.model.named_parameters() if one.requires_grad]
    # Query and value of three layers.
    assert parameter_count(lm.model) == 6 * 4 * 4
    assert all(f"lora_B.default.core_{core}_3.weight" in name for name in trained)


@pytest.mark.parametrize("core", FACTORS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_update_of_a_layer_is_the_core_between_orthonormal_factors(architecture, core):
    lm = adapted(architecture, core=core)
    stir_adapters(lm)
    layers = list(adapted_layers(lm))
    assert layers
    for _, a, _, b in layers:
        eye = torch.eye(4)
        torch.testing.assert_close(a @ a.T, eye, rtol=0.0, atol=1e-6)
        torch.testing.assert_close(b.T @ b, eye, rtol=0.0, atol=1e-6)
    # peft merges A and B into the weights by itself; alpha / rank is 16 / 4.
    before = logits(lm)
    wanted = [weight.detach() + 4.0 * b @ r @ a for weight, a, r, b in adapted_layers(lm)]
    lm.model.merge_adapter()
    for (merged, *_), want in zip(adapted_layers(lm), wanted, strict=True):
        torch.testing.assert_close(merged, want, rtol=0.0, atol=1e-6)
    torch.testing.assert_close(logits(lm), before, rtol=0.0, atol=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_factors_of_the_weights_are_their_top_singular_vectors(architecture):
    lm = small_model(architecture)
    generator = torch.Generator().manual_seed(0)
    for name, one in lm.model.named_parameters():
        # A spectrum with gaps: 4, 2, 1, then noise.
        if any(part in name for part in ("q_proj", "v_proj", "c_attn.weight")) and one.dim() == 2:
            left = torch.linalg.qr(torch.randn(one.shape[0], 3, generator=generator))[0]
            right = torch.linalg.qr(torch.randn(one.shape[1], 3, generator=generator))[0]
            strong = left @ torch.diag(torch.tensor([4.0, 2.0, 1.0])) @ right.T
            one.data.mul_(0.02).add_(strong)
    lm = attach_adapters(lm, AdapterSettings(rank=3, core="weights", train_a=False))
    for weight, a, _, b in adapted_layers(lm):
        u, _, vh = torch.linalg.svd(weight.detach().double())
        # Up to the common sign, which is that of the left vector's largest entry.
        largest = u[:, :3].gather(0, u[:, :3].abs().argmax(0, keepdim=True)).sign()
        torch.testing.assert_close(b.double(), u[:, :3] * largest, rtol=0.0, atol=1e-5)
        torch.testing.assert_close(a.double(), vh[:3] * largest.T, rtol=0.0, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    outputs=st.integers(1, 40),
    inputs=st.integers(1, 40),
    data=st.data(),
    seed=st.integers(0, 2**32),
)
def test_singular_vectors_are_orthonormal_and_the_same_again(outputs, inputs, data, seed):
    rank = data.draw(st.integers(1, min(outputs, inputs)))
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn((outputs, inputs), generator=generator)
    one, again = (
        top_singular_vectors(weights, rank, torch.Generator().manual_seed(1)) for _ in range(2)
    )
    for left, right in (one, again):
        eye = torch.eye(rank, dtype=torch.float64)
        torch.testing.assert_close(left.T @ left, eye, rtol=0.0, atol=1e-9)
        torch.testing.assert_close(right @ right.T, eye, rtol=0.0, atol=1e-9)
    assert torch.equal(one[0], again[0])
    assert torch.equal(one[1], again[1])
    # No other orthonormal pair of so few columns holds more than the exact one, and this nearly
    # all of it.
    held = float((one[0].T @ weights.double() @ one[1].T).square().sum())
    best = float(torch.linalg.svdvals(weights.double())[:rank].square().sum())
    assert 0.97 * best <= held <= best * (1.0 + 1e-9)


@settings(max_examples=30, deadline=None)
@given(
    rank=st.integers(1, 6), outputs=st.integers(6, 20), rows=st.integers(1, 3), seed=st.integers()
)
def test_core_and_basis_are_one_b_for_whoever_merges_them(rank, outputs, rows, seed):
    generator = torch.Generator().manual_seed(seed % 2**40)
    part = CoreAndBasis(torch.randn((outputs, rank), generator=generator), "core_seed_0")
    hidden = torch.randn((rows, 5, rank), generator=generator)
    assert not bool(part(hidden).any())
    part.core.data.copy_(torch.randn((rank, rank), generator=generator))
    want = hidden @ part.core.T @ part.basis.T
    torch.testing.assert_close(part(hidden), want, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(hidden @ part.weight.T, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("core", FACTORS)
def test_the_bytes_hold_the_cores_alone(core):
    lm = adapted(core=core)
    stir_adapters(lm)
    tensors = parse_adapter_tensors(adapter_weights(lm))
    trained = {name: one for name, one in lm.model.named_parameters() if one.requires_grad}
    assert set(tensors) == set(trained)
    assert all(one.shape == (4, 4) for one in tensors.values())
    assert all(torch.equal(tensors[name], trained[name]) for name in tensors)
    lora = attach_adapters(small_model(), AdapterSettings(rank=4))
    assert len(adapter_weights(lm).data) < len(adapter_weights(lora).data) / 3


@pytest.mark.parametrize("core", FACTORS)
def test_bytes_in_a_model_whose_factors_were_made_again_give_the_same_model(core):
    lm = adapted(core=core)
    stir_adapters(lm)
    again = adapted(core=core)
    load_adapters(again, adapter_weights(lm))
    assert torch.equal(logits(again), logits(lm))
    assert adapter_weights(again) == adapter_weights(lm)


@pytest.mark.parametrize(
    "other",
    [{"seed": 4}, {"core": "weights"}, {"rank": 3}, {"last_layers": 1}],
    ids=["another seed", "other factors", "another rank", "fewer layers"],
)
def test_cores_between_other_factors_are_refused(other):
    lm = adapted()
    before = adapter_weights(lm)
    with pytest.raises(ParameterError, match=r"other settings|has shape"):
        load_adapters(lm, adapter_weights(adapted(**other)))
    assert adapter_weights(lm) == before


def test_cores_and_lora_do_not_take_each_other_s_bytes():
    lm, lora = adapted(), attach_adapters(small_model(), AdapterSettings(rank=4))
    for one, other in ((lm, lora), (lora, lm)):
        with pytest.raises(ParameterError, match="other settings"):
            load_adapters(one, adapter_weights(other))


def factors_hash() -> str:
    """Of what both cores put on the small model with seed 3."""
    found = sha256()
    for core in ("seed", "weights"):
        chosen = AdapterSettings(rank=4, core=core, train_a=False, seed=3)
        for name, one in attach_adapters(small_model(), chosen).model.named_parameters():
            if "lora_" in name:
                found.update(name.encode() + one.detach().numpy().tobytes())
    return found.hexdigest()


def test_another_process_with_other_threads_makes_the_same_factors():
    folders = (str(Path(__file__).parent), str(Path(__file__).parents[3] / "doubles"))
    threads = 1 if torch.get_num_threads() > 1 else 2
    code = (
        f"import sys, torch\nsys.path[:0] = {folders!r}\ntorch.set_num_threads({threads})\n"
        "import test_cores\nprint(test_cores.factors_hash())"
    )
    other = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "1"},
    )
    assert other.stdout.strip() == factors_hash()


def test_other_seeds_and_other_layers_have_other_factors():
    one, other = (list(adapted_layers(adapted(seed=seed))) for seed in (3, 4))
    assert not any(torch.equal(a[1], b[1]) for a, b in zip(one, other, strict=True))
    assert len({layer[1].detach().numpy().tobytes() for layer in one}) == len(one)
    # A layer's own factors do not depend on which others are adapted.
    last = list(adapted_layers(adapted(seed=3, last_layers=1)))
    assert torch.equal(last[-1][1], one[-1][1])
    assert torch.equal(last[-1][3], one[-1][3])


def test_attaching_cores_leaves_torch_s_generator_where_it_was():
    before = torch.random.get_rng_state()
    adapted()
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_share_of_the_update_is_a_share_of_the_core():
    lm = adapted()
    stir_adapters(lm)
    whole = adapter_weights(lm)
    load_adapters(lm, scaled_adapters(whole, 0.5))
    halves = parse_adapter_tensors(adapter_weights(lm))
    assert all(torch.equal(halves[name], 0.5 * one) for name, one in load(whole.data).items())
    load_adapters(lm, scaled_adapters(whole, 0.0))
    assert torch.equal(logits(lm), logits(small_model()))


@pytest.mark.parametrize("core", [None, *FACTORS])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_written_for_others_it_is_plain_lora_that_peft_loads(architecture, core, tmp_path):
    chosen = AdapterSettings(rank=4, core=core, train_a=core is None)
    lm = attach_adapters(small_model(architecture), chosen)
    stir_adapters(lm)
    save_as_lora(lm, tmp_path)
    base = small_model(architecture).model
    theirs = PeftModel.from_pretrained(base, tmp_path).eval()
    names = {name for name, _ in theirs.named_parameters() if "lora_" in name}
    assert all(name.endswith(("lora_A.default.weight", "lora_B.default.weight")) for name in names)
    torch.testing.assert_close(
        theirs(input_ids=TOKENS).logits.detach(), logits(lm), rtol=0.0, atol=1e-5
    )


@pytest.mark.parametrize("core", FACTORS)
def test_a_rank_above_a_layer_s_smaller_side_is_refused_by_name(core):
    # Two heads of value are 16 wide.
    with pytest.raises(ParameterError, match=r"adapter_rank 17: model.layers.0.*v_proj maps 32 to"):
        adapted(core=core, rank=17)


def test_factors_of_weights_that_are_packed_are_refused_and_those_of_the_seed_are_not():
    def packed():
        lm = small_model()
        for name, one in lm.model.named_parameters():
            if "q_proj" in name:
                one.requires_grad_(False)
                one.data = one.data.to(torch.int8)
        return lm

    chosen = {"rank": 2, "train_a": False}
    with pytest.raises(ParameterError, match=r"adapter_core weights: those of model.layers.0"):
        attach_adapters(packed(), AdapterSettings(core="weights", **chosen))
    attach_adapters(packed(), AdapterSettings(core="seed", **chosen))


@pytest.mark.parametrize("core", FACTORS)
def test_a_core_beside_a_trained_a_is_refused(core):
    with pytest.raises(ParameterError, match="train_a"):
        AdapterSettings(core=core)
