"""DP-SGD on a CUDA device: the CPU's update, exact sums, the operating system's noise, memory.

Needs torch, transformers, peft, dp-accounting and cryptography, and opacus for its engine; nothing
of the federation around the trainer.
"""

from __future__ import annotations

import importlib.util
import math
from dataclasses import replace
from fractions import Fraction

import pytest
import torch

# Of the ledger, whose epsilon every paid run asks for, and of the noise.
pytest.importorskip("dp_accounting")
pytest.importorskip("cryptography")

from cuda_checks import (
    gradient_by_engine,
    gradient_by_plain_lora,
    relative_distance,
)
from torch.utils._python_dispatch import TorchDispatchMode
from trainer_doubles import (
    ARCHITECTURES,
    PLAN_HASH,
    approved_ledger,
    example,
    float_sum,
    grid_sum,
    opened_trainer,
    paid,
    small_model,
    stir_adapters,
    units_of_sizes,
)

from lada_lab.micro.dpsgd import run_dpsgd
from lada_lab.micro.dpsgd_models import BenchModel, BenchPlace, build_model, make_tokens
from lada_lab.micro.dpsgd_variants import make_step
from lada_secure.dpsgd import trainer as trainer_module
from lada_secure.dpsgd.batching import physical_batches
from lada_secure.dpsgd.clipping import ClippedSum
from lada_secure.dpsgd.distillation import distil, training_spec
from lada_secure.dpsgd.noise import DiscreteGaussian
from lada_secure.dpsgd.parameters import STD_STEPS, DpSgdParameters, TrainerSettings
from lada_secure.dpsgd.trainer import noised_gradient
from lada_secure.models.adapters import AdapterSettings, attach_adapters
from lada_secure.models.loss import LossSettings
from lada_secure.models.token_scores import token_scores

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

# The other engine is a library of its own, which a borrowed machine may lack.
ENGINES = [
    "fused",
    pytest.param(
        "opacus",
        marks=pytest.mark.skipif(
            importlib.util.find_spec("opacus") is None, reason="opacus is not installed"
        ),
    ),
]
needs_bfloat16 = pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability()[0] < 8,
    reason="this device is not good at bfloat16",
)

CLIP = 0.05
UNITS = units_of_sizes(1, 4, 2, 8, 1, 3)
POOL = tuple(example(at) for at in range(50, 57))


def adapted(architecture="llama", *, rank=2, device="cuda", exact=False, **placement):
    """exact: with the weights of a base in bfloat16, as float32."""
    lm = small_model(architecture, **placement)
    if exact:
        lm.model.bfloat16().float()
    lm = attach_adapters(lm, AdapterSettings(rank=rank))
    stir_adapters(lm)
    lm.model.to(device)
    return replace(lm, placement=replace(lm.placement, device=device))


def build():
    return adapted()


def parameters(**changes):
    values = {
        "noise_multiplier": 1.0,
        "l2_clip_norm": CLIP,
        "sampling_probability": 1.0,
        "expected_units": 4.0,
        "steps": 6,
        "pool_gradients": "public",
    }
    return DpSgdParameters(**{**values, **changes})


def open_trainer(device, lm=None, *, units=UNITS, privacy=None, dtype="float32", **changes):
    values = {
        "physical_batch_size": 8,
        "loss": LossSettings(contrastive_form="dpo", contrastive_weight=1.0),
    }
    return opened_trainer(
        adapted(device=device, dtype=dtype) if lm is None else lm,
        units,
        pool=(),
        privacy=privacy or parameters(),
        settings=TrainerSettings(**{**values, **changes}),
    )


def without_noise(total, privacy, _):
    return total.integers().double() * (CLIP / privacy.clip_steps / privacy.expected_units)


def run(device, *, lm=None, book=None, privacy=None, progress=None, dtype="float32", **changes):
    privacy = privacy or parameters()
    lm = lm or adapted(device=device, dtype=dtype)
    values = {
        "physical_batch_size": 8,
        "pool_batch_size": 3,
        "steps_per_reservation": 3,
    }
    result = distil(
        lm,
        units=paid(UNITS),
        pool=POOL,
        privacy=privacy,
        settings=TrainerSettings(**{**values, **changes}),
        book=book or approved_ledger(),
        spec=training_spec(privacy, study_id="study", plan_hash=PLAN_HASH, round_id=1),
        progress=progress,
    )
    return result, [one.detach().cpu() for one in lm.model.parameters() if one.requires_grad]


def test_on_a_gpu_noise_is_drawn_ahead():
    trainer = open_trainer("cuda")
    assert trainer.device.type == "cuda"
    assert trainer._noise is not None
    vector = trainer._noise.take()
    assert vector.is_pinned()
    trainer.close()


class NoQuestions(TorchDispatchMode):
    """Refuses operators whose result the CPU would have to wait for."""

    def __torch_dispatch__(self, func, _types, args=(), kwargs=None):
        assert func.overloadpacket.__name__ not in ("_local_scalar_dense", "nonzero"), func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_step_never_waits_for_the_device(architecture, engine):
    trainer = open_trainer("cuda", adapted(architecture), engine=engine)
    trainer.step()
    torch.cuda.synchronize()
    # CUDA itself says where the CPU waits for it: copies from ordinary memory, values, events.
    torch.cuda.set_sync_debug_mode("error")
    try:
        with NoQuestions():
            trainer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    trainer.close()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_clipped_sums_are_those_of_the_cpu(architecture, engine):
    sums = []
    for device in ("cuda", "cpu"):
        trainer = open_trainer(device, adapted(architecture, device=device), engine=engine)
        sums.append(float_sum(trainer).cpu())
        trainer.close()
    gpu, cpu = sums
    assert float((gpu - cpu).norm()) <= 1e-4 * float(cpu.norm())


@pytest.mark.parametrize("engine", ENGINES)
def test_without_noise_six_steps_end_with_the_weights_of_the_cpu(monkeypatch, engine):
    monkeypatch.setattr(trainer_module, "noised_gradient", without_noise)
    (gpu, on_gpu), (cpu, on_cpu) = (run(device, engine=engine) for device in ("cuda", "cpu"))
    assert (gpu.device, cpu.device) == ("cuda", "cpu")
    for a, b in zip(on_gpu, on_cpu, strict=True):
        torch.testing.assert_close(a, b, rtol=0.0, atol=1e-4)
    assert gpu.public_losses == pytest.approx(cpu.public_losses, rel=1e-3)


def test_integers_are_summed_exactly_on_the_device():
    trainer = open_trainer("cuda")
    # The very same gradients both times: a kernel may round a row differently in other company.
    gradients = [
        trainer.source.unit_gradients(batch)
        for batch in physical_batches(trainer._units, physical_batch_size=1)
    ]
    sums = [ClippedSum(trainer.parameters, parameters()) for _ in range(7)]
    for alone, gradient in zip(sums[1:], gradients, strict=True):
        alone.add([one.clone() for one in gradient])
        assert (
            sum(int(one) ** 2 for one in alone.integers().tolist()) <= parameters().clip_steps ** 2
        )
    sums[0].add([torch.cat(some) for some in zip(*gradients, strict=True)])
    trainer.close()
    together, *each = (one.integers() for one in sums)
    assert together.is_cuda
    assert together.dtype == torch.int64
    assert torch.equal(together, torch.stack(each).sum(0))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradients_are_those_of_plain_lora_on_the_same_device(architecture, engine):
    plain = gradient_by_plain_lora(adapted(architecture), UNITS)
    ours = gradient_by_engine(adapted(architecture), UNITS, engine=engine)
    assert float(plain.norm()) > 0.0
    assert relative_distance(ours, plain) <= 1e-4


@needs_bfloat16
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_in_bfloat16_gradients_are_as_near_to_the_exact_ones_as_plain_lora_s(architecture, engine):
    exact = gradient_by_plain_lora(adapted(architecture, exact=True), UNITS)
    plain = gradient_by_plain_lora(adapted(architecture, dtype="bfloat16"), UNITS)
    ours = gradient_by_engine(adapted(architecture, dtype="bfloat16"), UNITS, engine=engine)
    off = relative_distance(plain, exact)
    assert 0.0 < off < 0.05
    assert relative_distance(ours, exact) <= 1.5 * off + 1e-3


@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.bfloat16, marks=needs_bfloat16)]
)
def test_token_scores_are_those_of_cross_entropy_on_the_device(dtype):
    generator = torch.Generator(device="cuda").manual_seed(0)
    head = torch.nn.Linear(64, 30_000, bias=False, device="cuda", dtype=dtype)
    head.requires_grad_(False)
    hidden = torch.randn((5_000, 64), generator=generator, device="cuda")
    targets = torch.randint(30_000, (5_000,), generator=generator, device="cuda")
    weights = torch.randn(5_000, generator=generator, device="cuda")
    found = []
    for ours in (True, False):
        at = hidden.clone().requires_grad_()
        short = at.to(dtype)
        scores = (
            token_scores(short, head, targets)
            if ours
            else -torch.nn.functional.cross_entropy(head(short).float(), targets, reduction="none")
        )
        (scores * weights).sum().backward()
        found.append((scores.detach(), at.grad))
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for one, other in zip(*found, strict=True):
        assert relative_distance(one, other) <= tolerance


def test_removing_any_unit_moves_the_sum_by_at_most_one_clip_norm():
    trainer = open_trainer("cuda")
    units = list(trainer._units)
    whole = grid_sum(trainer, units).integers()
    for left in units:
        rest = grid_sum(trainer, [one for one in units if one is not left]).integers()
        assert float((whole - rest).double().norm()) / parameters().clip_steps <= 1.0 + 1e-6
    trainer.close()


def test_noise_is_whole_grid_steps_from_the_operating_system():
    trainer = open_trainer("cuda")
    privacy = parameters()
    total = grid_sum(trainer, [])
    drawn = []
    for _ in range(20):
        torch.cuda.manual_seed_all(1)
        torch.manual_seed(1)
        drawn.append(noised_gradient(total, privacy))
    trainer.close()
    step = CLIP / privacy.clip_steps / privacy.expected_units
    whole = torch.stack(drawn) / step
    assert whole.is_cuda
    assert float((whole - whole.round()).abs().max()) < 1e-3
    assert len({tuple(one[:8].tolist()) for one in drawn}) == 20
    # n = 20 x 672 catches a 6% error at ALPHA = 1e-6; the sampler itself is tested elsewhere.
    std = privacy.noise_multiplier * CLIP / privacy.expected_units
    assert float(torch.stack(drawn).std()) == pytest.approx(std, rel=0.06)


def test_moments_of_the_noise_arrive_on_the_device_unchanged():
    count = 2**21
    drawn = DiscreteGaussian(Fraction(STD_STEPS)).sample(count)
    there = torch.from_numpy(drawn).to("cuda")
    assert torch.equal(there.cpu(), torch.from_numpy(drawn))
    scaled = there.double() / STD_STEPS
    # 5.5 standard errors of each of four moments: 2e-7 together, by the normal limit.
    for power, mean, spread in ((1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)):
        error = math.sqrt(spread / count)
        assert abs(float(scaled.pow(power).mean()) - mean) <= 5.5 * error


@needs_bfloat16
@pytest.mark.parametrize("engine", ENGINES)
def test_a_forward_pass_in_bfloat16_gives_float_gradients_near_the_exact_ones(engine):
    exact = open_trainer("cuda", engine=engine)
    wanted = float_sum(exact, clip=1e6)
    exact.close()
    short = open_trainer("cuda", engine=engine, dtype="bfloat16")
    found = float_sum(short, clip=1e6)
    batch = physical_batches(short._units, physical_batch_size=1)[0]
    assert all(one.dtype == torch.float32 for one in short.source.unit_gradients(batch))
    units = list(short._units)
    whole = grid_sum(short, units).integers()
    for unit in units:
        rest = grid_sum(short, [one for one in units if one is not unit]).integers()
        squared = sum(int(one) ** 2 for one in (whole - rest).tolist())
        assert squared <= parameters().clip_steps ** 2
    short.close()
    assert not torch.equal(found, wanted)
    assert float((found - wanted).norm()) < 0.05 * float(wanted.norm())


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=needs_bfloat16)])
@pytest.mark.parametrize("engine", ENGINES)
def test_checkpointing_changes_no_bit_of_the_gradients(engine, dtype):
    found = [
        gradient_by_engine(adapted(dtype=dtype), UNITS, engine=engine, checkpoints=checkpoints)
        for checkpoints in (False, True)
    ]
    assert torch.equal(*found)


@needs_bfloat16
@pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)
@pytest.mark.parametrize("how", ["4bit", "8bit"])
def test_with_a_packed_base_both_engines_and_autograd_agree_on_units_alone(how):
    from packed_doubles import packed, wide_llama

    found = []
    for engine in ("plain", "fused", "opacus"):
        if engine == "opacus" and importlib.util.find_spec("opacus") is None:
            continue
        model = packed(wide_llama().bfloat16().to("cuda"), how, compute_dtype=torch.bfloat16)
        lm = replace(small_model(), model=model)
        lm = attach_adapters(lm, AdapterSettings(rank=2))
        stir_adapters(lm)
        lm.model.to("cuda")
        alone = units_of_sizes(1, own=False)
        found.append(
            gradient_by_plain_lora(lm, alone)
            if engine == "plain"
            else gradient_by_engine(lm, alone, engine=engine)
        )
    for one in found[1:]:
        assert relative_distance(one, found[0]) <= 0.05


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("engine", ENGINES)
def test_a_base_over_two_devices_gives_the_sum_of_one(engine):
    from accelerate import dispatch_model

    sums = []
    for spread in (False, True):
        lm = small_model(layers=2)
        if spread:
            where = {"model.embed_tokens": 0, "model.layers.0": 0, "model.layers.1": 1}
            rest = {"model.norm": 1, "model.rotary_emb": 0, "lm_head": 1}
            dispatch_model(lm.model, {**where, **rest})
        else:
            lm.model.to("cuda:0")
        lm = attach_adapters(lm, AdapterSettings(rank=2))
        stir_adapters(lm)
        lm = replace(lm, placement=replace(lm.placement, device="cuda:0"))
        trainer = open_trainer("cuda", lm, engine=engine)
        sums.append(grid_sum(trainer).integers().double())
        trainer.step()
        trainer.close()
    assert relative_distance(*sums) <= 1e-4


def test_a_run_on_the_gpu_is_paid_for_and_learns_the_pool():
    book, reports = approved_ledger(), []
    privacy = parameters(noise_multiplier=4.0, sampling_probability=0.25, steps=25)
    result, _ = run(
        "cuda",
        book=book,
        privacy=privacy,
        dtype="bfloat16",
        pool_batch_size=len(POOL),
        private_weight=0.0,
        learning_rate=0.02,
        progress=reports.append,
    )
    losses = result.public_losses
    assert losses[-1] < 0.8 * losses[0]
    assert [one.step for one in reports] == list(range(1, 26))
    assert reports[-1].study_epsilon == pytest.approx(book.epsilon_spent(1e-5))


def test_a_run_that_began_on_the_cpu_goes_on_on_the_gpu():
    class Interrupted(Exception):
        pass

    def crash(report):
        if report.step == 4:
            raise Interrupted

    book = approved_ledger()
    with pytest.raises(Interrupted):
        run("cpu", book=book, progress=crash)
    result, _ = run("cuda", book=book)
    assert len(result.public_losses) == 6


def test_a_batch_that_does_not_fit_into_the_gpu_s_memory_goes_in_halves(caplog):
    """Real exhaustion: the process may use less than what the whole batch needs."""
    lm = attach_adapters(
        small_model(layers=2), AdapterSettings(rank=2, target_modules=("q_proj", "v_proj"))
    )
    lm.model.to("cuda")
    trainer = open_trainer("cuda", lm, units=units_of_sizes(*(1,) * 4096), physical_batch_size=4096)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    idle = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    whole = float_sum(trainer)
    peak = torch.cuda.max_memory_allocated()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((idle + 0.7 * (peak - idle)) / total)
    try:
        halved = float_sum(trainer)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        trainer.close()
    assert trainer.source.physical_batch_size < 4096
    assert "out of memory" in caplog.text
    difference = float((whole - halved).norm())
    assert difference <= 1e-4 * float(whole.norm())


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_private_step_needs_no_more_memory_than_a_plain_one(dtype, checkpointing):
    shape = BenchModel()
    place = BenchPlace(device="cuda", dtype=dtype, gradient_checkpointing=checkpointing)
    peaks = {}
    for variant in ("plain", "fused"):
        model = build_model(shape, place)
        step = make_step(variant, model, place)
        tokens = make_tokens(shape.vocabulary, sequence_length=128, batch_size=32)
        step(tokens)
        idle = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step(tokens)
        peaks[variant] = torch.cuda.max_memory_allocated() - idle
        del model, step
        torch.cuda.empty_cache()
    print(f"{dtype}: {peaks}")
    assert peaks["fused"] <= peaks["plain"]


def test_the_benchmark_runs_on_the_gpu_and_says_what_it_measured():
    report = run_dpsgd(
        sequence_lengths=(128,),
        batch_sizes=(16,),
        repetitions=3,
        variants=("fused", "fused_nonprivate"),
        place=BenchPlace(device="cuda"),
    )
    print(report)
    assert report["clock"] == "wall"
    assert report["device"] == torch.cuda.get_device_name(0)
    for name in ("ratio", "ratio_to_fused_nonprivate", "memory_ratio"):
        assert math.isfinite(report[name]["fused"])
        assert report[name]["fused"] > 0.0
