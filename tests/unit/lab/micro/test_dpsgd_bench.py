"""`run_dpsgd`: all variants run, and the report has the stated figures."""

from __future__ import annotations

import json

import pytest
import torch

from lada_lab.micro.dpsgd import run_dpsgd
from lada_lab.micro.dpsgd_models import BenchModel, BenchPlace, build_model, make_tokens
from lada_lab.micro.dpsgd_variants import VARIANTS, make_step, update_gap
from lada_secure.errors import ParameterError

SMALL = BenchModel(layers=1, hidden_size=64, vocabulary=64, rank=2)


@pytest.mark.slow
def test_two_processes_take_turns_and_report_ratios():
    report = run_dpsgd(
        sequence_lengths=(8,), batch_sizes=(2, 3), repetitions=1, model=SMALL, variants=("fused",)
    )
    assert json.loads(json.dumps(report)) == report
    assert set(report["cases"]) == {"8x2", "8x3"}
    assert report["worst"]["ratio"]["fused"] <= report["ratio"]["fused"]
    assert report["model"]["trainable_parameters"] == 2 * 2 * (64 + 64)
    assert report["ratio"]["plain"] == report["memory_ratio"]["plain"] == 1.0
    for case in report["cases"].values():
        assert case["ratio"]["fused"] == case["step_s"]["plain"] / case["step_s"]["fused"]
        assert min(case["step_s"].values()) > 0.0
        assert 0.0 < case["noise_share"]["fused"] < 1.0
        assert case["process_bytes"]["fused"] > case["peak_bytes"]["fused"] > 0


SHORT = BenchPlace(dtype="bfloat16")
AGAIN = BenchPlace(gradient_checkpointing=True)
BOTH = BenchPlace(dtype="bfloat16", gradient_checkpointing=True)


@pytest.mark.slow
def test_a_report_of_a_short_base_with_checkpointing_says_how_far_updates_are_from_exact_ones():
    report = run_dpsgd(
        sequence_lengths=(8,),
        batch_sizes=(3,),
        repetitions=1,
        model=SMALL,
        variants=("fused", "opacus"),
        place=BOTH,
    )
    assert (report["dtype"], report["gradient_checkpointing"]) == ("bfloat16", True)
    assert set(report["update_gap"]) == {"fused", "opacus"}
    assert all(0.0 < gap < 0.05 for gap in report["update_gap"].values())


@pytest.mark.parametrize("engine", ["fused", "opacus"])
@pytest.mark.parametrize(
    ("place", "least", "most"),
    [(SHORT, 1e-6, 0.05), (AGAIN, 0.0, 0.0), (BOTH, 1e-6, 0.05)],
    ids=["bfloat16", "checkpointing", "both"],
)
def test_updates_under_the_same_noise_are_the_exact_ones_within_the_stated_bound(
    engine, place, least, most
):
    torch.set_num_threads(1)
    gap = update_gap(engine, SMALL, place, sequence_length=8, batch_size=3)
    assert least <= gap <= most


@pytest.mark.parametrize("place", [SHORT, AGAIN, BOTH], ids=["bfloat16", "checkpointing", "both"])
def test_plain_and_fused_train_the_same_base_in_every_place(place):
    torch.set_num_threads(1)
    ends = []
    for variant in ("plain", "fused_nonprivate"):
        model = build_model(SMALL, place)
        short = {one.dtype for one in model.parameters() if not one.requires_grad}
        assert short == {place.placement().torch_dtype}
        step = make_step(variant, model, place)
        step(make_tokens(SMALL.vocabulary, sequence_length=8, batch_size=3))
        ends.append([one.detach() for one in model.parameters() if one.requires_grad])
    # AdamW's first step is the learning rate in the gradient's direction, whatever its length.
    for plain, fused in zip(*ends, strict=True):
        same = (plain - fused).abs() < 1e-4
        assert float(same.double().mean()) > (0.95 if place.dtype == "bfloat16" else 0.999)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_trains_the_same_adapters(variant):
    torch.set_num_threads(1)
    model = build_model(SMALL)
    trained = [one for one in model.parameters() if one.requires_grad]
    before = [one.detach().clone() for one in trained]
    step = make_step(variant, model)
    tokens = make_tokens(SMALL.vocabulary, sequence_length=8, batch_size=3)
    step(tokens)
    step(tokens)
    assert all(not torch.equal(a, b) for a, b in zip(before, trained, strict=True))


def test_without_privacy_plain_and_fused_end_with_the_same_weights():
    torch.set_num_threads(1)
    ends = []
    for variant in ("plain", "fused_nonprivate"):
        model = build_model(SMALL)
        step = make_step(variant, model)
        for _ in range(3):
            step(make_tokens(SMALL.vocabulary, sequence_length=8, batch_size=3))
        ends.append([one.detach() for one in model.parameters() if one.requires_grad])
    for plain, fused in zip(*ends, strict=True):
        torch.testing.assert_close(plain, fused, rtol=0.0, atol=1e-5)


@pytest.mark.parametrize(
    "values",
    [
        {"repetitions": 0},
        {"sequence_lengths": (1,)},
        {"batch_sizes": ()},
        {"variants": ("fused", "fast")},
        {"variants": ("ghost",), "place": BenchPlace(gradient_checkpointing=True)},
    ],
    ids=["no repetition", "a row of one token", "no batch", "an unknown variant", "ghost twice"],
)
def test_shapes_out_of_range_are_refused(values):
    with pytest.raises(ParameterError, match="bench dpsgd"):
        run_dpsgd(**values)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ({"device": "abacus"}, "device"),
        ({"dtype": "float16"}, "dtype"),
        ({"threads": 0}, "threads"),
    ],
)
def test_places_that_do_not_exist_are_refused_before_a_process_starts(place, message):
    with pytest.raises(ParameterError, match=message):
        run_dpsgd(place=BenchPlace(**place))
