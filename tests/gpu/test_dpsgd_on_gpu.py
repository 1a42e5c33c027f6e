"""DP-SGD on a CUDA device: the CPU's update, exact sums, the operating system's noise, memory.

Needs torch, transformers, peft, dp-accounting and cryptography, and opacus for its engine; nothing
of the federation around the trainer.
"""

from __future__ import annotations

import importlib.util
import math
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
from lada_lab.micro.dpsgd_variants import (
    BenchModel,
    BenchPlace,
    build_model,
    make_step,
    make_tokens,
)
from lada_secure.dpsgd import trainer as trainer_module
from lada_secure.dpsgd.batching import physical_batches
from lada_secure.dpsgd.clipping import ClippedSum
from lada_secure.dpsgd.distillation import distil, training_spec
from lada_secure.dpsgd.engine_fused import _float_products
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


def adapted(architecture="llama", *, rank=2):
    lm = attach_adapters(small_model(architecture), AdapterSettings(rank=rank))
    stir_adapters(lm)
    return lm


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


def open_trainer(device, lm=None, *, units=UNITS, privacy=None, **changes):
    values = {
        "precision": "float32",
        "physical_batch_size": 8,
        "loss": LossSettings(contrastive_form="dpo", contrastive_weight=1.0),
    }
    return opened_trainer(
        lm or adapted(),
        units,
        pool=(),
        privacy=privacy or parameters(),
        settings=TrainerSettings(**{**values, **changes}, device=device),
    )


def without_noise(total, privacy):
    return total.integers().double() * (CLIP / privacy.clip_steps / privacy.expected_units)


def run(device, *, lm=None, book=None, privacy=None, progress=None, **changes):
    privacy = privacy or parameters()
    lm = lm or adapted()
    values = {
        "precision": "float32",
        "physical_batch_size": 8,
        "pool_batch_size": 3,
        "steps_per_reservation": 3,
    }
    result = distil(
        lm,
        units=paid(UNITS),
        pool=POOL,
        privacy=privacy,
        settings=TrainerSettings(**{**values, **changes}, device=device),
        book=book or approved_ledger(),
        spec=training_spec(privacy, study_id="study", plan_hash=PLAN_HASH, round_id=1),
        progress=progress,
    )
    return result, [one.detach().cpu() for one in lm.model.parameters() if one.requires_grad]


def test_auto_takes_the_gpu_and_float32():
    settings = TrainerSettings()
    assert settings.torch_device().type == "cuda"
    assert settings.autocast_dtype() is None


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_clipped_sums_are_those_of_the_cpu(architecture, engine):
    sums = []
    for device in ("cuda", "cpu"):
        trainer = open_trainer(device, adapted(architecture), engine=engine)
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
    plain = gradient_by_plain_lora(adapted(architecture), UNITS, dtype=None)
    ours = gradient_by_engine(adapted(architecture), UNITS, dtype=None, engine=engine)
    assert float(plain.norm()) > 0.0
    assert relative_distance(ours, plain) <= 1e-4


@needs_bfloat16
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_in_bfloat16_gradients_are_as_near_to_the_exact_ones_as_plain_lora_s(architecture, engine):
    exact = gradient_by_plain_lora(adapted(architecture), UNITS, dtype=None)
    plain = gradient_by_plain_lora(adapted(architecture), UNITS, dtype=torch.bfloat16)
    ours = gradient_by_engine(adapted(architecture), UNITS, dtype=torch.bfloat16, engine=engine)
    off = relative_distance(plain, exact)
    assert 0.0 < off < 0.05
    assert relative_distance(ours, exact) <= 1.5 * off + 1e-3


@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.bfloat16, marks=needs_bfloat16)]
)
def test_token_scores_are_those_of_cross_entropy_on_the_device(dtype):
    generator = torch.Generator(device="cuda").manual_seed(0)
    head = torch.nn.Linear(64, 30_000, bias=False, device="cuda").requires_grad_(False)
    hidden = torch.randn((5_000, 64), generator=generator, device="cuda")
    targets = torch.randint(30_000, (5_000,), generator=generator, device="cuda")
    weights = torch.randn(5_000, generator=generator, device="cuda")
    found = []
    for ours in (True, False):
        at = hidden.clone().requires_grad_()
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            scores = (
                token_scores(at, head, targets)
                if ours
                else -torch.nn.functional.cross_entropy(head(at).float(), targets, reduction="none")
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
    short = open_trainer("cuda", engine=engine, precision="bfloat16")
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


@needs_bfloat16
@pytest.mark.parametrize("rows", [1, 6])
def test_products_of_bfloat16_factors_are_not_rounded_to_bfloat16(rows):
    generator = torch.Generator(device="cuda").manual_seed(0)
    left, right = (
        torch.randn((rows, 50, width), generator=generator, device="cuda").bfloat16()
        for width in (8, 64)
    )
    wanted = torch.bmm(left.double().transpose(1, 2), right.double())
    found = _float_products(left, right)
    assert found.dtype == torch.float32
    # Rounding to bfloat16 would be off by about 1e-3.
    assert float((found - wanted).norm()) < 1e-5 * float(wanted.norm())


def test_a_run_on_the_gpu_is_paid_for_and_learns_the_pool():
    book, reports = approved_ledger(), []
    privacy = parameters(noise_multiplier=4.0, sampling_probability=0.25, steps=25)
    result, _ = run(
        "auto",
        book=book,
        privacy=privacy,
        precision="bfloat16",
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


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_private_step_needs_no_more_memory_than_a_plain_one(precision):
    shape, place = BenchModel(), BenchPlace(device="cuda", precision=precision)
    peaks = {}
    for variant in ("plain", "fused"):
        model = build_model(shape)
        step = make_step(variant, model, place)
        tokens = make_tokens(shape.vocabulary, sequence_length=128, batch_size=32)
        step(tokens)
        idle = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step(tokens)
        peaks[variant] = torch.cuda.max_memory_allocated() - idle
        del model, step
        torch.cuda.empty_cache()
    print(f"{precision}: {peaks}")
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
