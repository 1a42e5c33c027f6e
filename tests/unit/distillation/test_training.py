"""`distil`: what is paid and when, interruption and resumption, and refusals before spending."""

from __future__ import annotations

import math

import pytest
import torch
from trainer_doubles import PLAN_HASH, approved_ledger, example, small_model, units_of_sizes

from lada_secure.distillation.adapters import (
    AdapterSettings,
    AdapterWeights,
    adapter_weights,
    attach_adapters,
    load_adapters,
)
from lada_secure.distillation.parameters import DpSgdParameters, TrainerSettings
from lada_secure.distillation.trainer import Trainer
from lada_secure.distillation.training import distil, training_spec
from lada_secure.errors import ParameterError, PrivacyBudgetExceeded
from lada_secure.privacy.entries import CommitEntry, ReserveEntry
from lada_secure.privacy.events import DpSgdEvent
from lada_secure.privacy.released import Released

POOL = tuple(example(at) for at in range(50, 57))
UNITS = units_of_sizes(1, 2, 3, 1)


class Interrupted(Exception):
    """Stands for whatever ends a process in the middle of a step's report."""


def parameters(**changes):
    values = {
        "noise_multiplier": 2.0,
        "l2_clip_norm": 0.5,
        "sampling_probability": 0.25,
        "expected_units": 2.0,
        "steps": 7,
        "pool_gradients": "public",
    }
    return DpSgdParameters(**{**values, **changes})


def settings(**changes):
    values = {"pool_batch_size": 3, "physical_batch_size": 6, "steps_per_reservation": 3}
    return TrainerSettings(**{**values, **changes})


def adapted(**changes):
    return attach_adapters(small_model(), AdapterSettings(**{"rank": 2, **changes}))


def run(lm, book, *, privacy=None, tuned=None, units=UNITS, pool=POOL, progress=None):
    privacy = privacy or parameters()
    return distil(
        lm,
        units=units,
        pool=pool,
        privacy=privacy,
        settings=tuned or settings(),
        book=book,
        spec=training_spec(privacy, study_id="study", plan_hash=PLAN_HASH, round_id=1),
        progress=progress,
    )


def reserved(book):
    return [one for one in book.entries() if isinstance(one, ReserveEntry)]


def committed(book):
    return [one for one in book.entries() if isinstance(one, CommitEntry)]


def test_steps_are_paid_in_chunks_each_before_its_first_step():
    book, seen = approved_ledger(), []
    run(adapted(), book, progress=lambda one: seen.append((one.step, len(reserved(book)))))
    assert seen == [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2), (6, 2), (7, 3)]
    assert [one.event for one in reserved(book)] == [
        DpSgdEvent(noise_multiplier=2.0, sampling_probability=0.25, steps=steps)
        for steps in (3, 3, 1)
    ]
    assert [one.mechanism for one in reserved(book)] == ["dp_sgd"] * 3
    assert [one.chunk for one in committed(book)] == [0, 1, 2]


def test_progress_tells_step_public_loss_and_the_epsilon_of_the_ledger():
    book, reports = approved_ledger(), []
    run(adapted(), book, progress=reports.append)
    assert [one.step for one in reports] == list(range(1, 8))
    assert {one.steps for one in reports} == {7}
    assert all(math.isfinite(one.public_loss) for one in reports)
    epsilons = [one.epsilon for one in reports]
    assert epsilons == sorted(epsilons)
    assert epsilons[-1] == pytest.approx(book.epsilon_spent(1e-5))
    assert epsilons[0] == pytest.approx(reserved(book)[0].epsilon_after)


def test_the_result_is_released_and_is_what_the_model_holds():
    book = approved_ledger()
    lm = adapted()
    before = adapter_weights(lm)
    result = run(lm, book)
    assert type(result.adapters) is Released
    assert result.adapters.paid_by_all == tuple(one.entry_hash for one in reserved(book))
    assert result.adapters.value.data == adapter_weights(lm).data != before.data
    fresh = adapted()
    load_adapters(fresh, AdapterWeights(data=result.adapters.value.data))
    assert adapter_weights(fresh) == result.adapters.value
    assert result.log.engine == "fused"
    assert result.log.trainable_parameters == sum(
        one.numel() for one in lm.model.parameters() if one.requires_grad
    )


def test_a_finished_run_gives_the_same_bytes_again_and_spends_nothing():
    book = approved_ledger()
    first = run(adapted(), book)
    spent = len(book.entries())
    again = run(adapted(), book)
    assert again.adapters.value == first.adapters.value
    assert again.log.public_losses == first.log.public_losses
    assert len(book.entries()) == spent


@pytest.mark.parametrize("crash_after", [1, 2, 4, 6])
def test_an_interrupted_run_goes_on_from_the_last_commit_and_pays_again(crash_after):
    book = approved_ledger()

    def crash(report):
        if report.step == crash_after:
            raise Interrupted

    with pytest.raises(Interrupted):
        run(adapted(), book, progress=crash)
    chunk, steps = (crash_after - 1) // 3, []
    result = run(adapted(), book, progress=lambda one: steps.append(one.step))
    assert steps == list(range(3 * chunk + 1, 8))
    assert result.log.resumed_at_step == 3 * chunk
    assert len(result.log.public_losses) == 7
    # Paid: every step of every attempt, so at least what was really taken.
    assert sum(one.event.steps for one in reserved(book)) == 7 + 3
    assert [one.attempt for one in reserved(book) if one.chunk == chunk] == [0, 1]
    assert len(committed(book)) == 3


def test_a_resumed_run_draws_fresh_randomness():
    weights = set()
    for _ in range(3):
        book = approved_ledger()

        def crash(report):
            if report.step == 2:
                raise Interrupted

        with pytest.raises(Interrupted):
            run(adapted(), book, progress=crash)
        weights.add(run(adapted(), book).adapters.value.data)
    assert len(weights) == 3


def test_an_interrupted_model_can_be_used_and_trained_on():
    lm = adapted()

    def crash(_):
        raise Interrupted

    with pytest.raises(Interrupted):
        run(lm, approved_ledger(), progress=crash)
    assert not any("forward" in vars(one) for one in lm.model.modules())
    assert lm.model(input_ids=torch.tensor([[5, 6]])).logits.shape == (1, 2, 40)


def test_restored_moments_make_the_next_step_the_same():
    privacy, tuned = parameters(), settings(schedule="linear", weight_decay=0.1)
    one, other = (
        Trainer(adapted(), units=UNITS, pool=POOL, privacy=privacy, settings=tuned)
        for _ in range(2)
    )
    size = sum(part.numel() for part in one.parameters)
    pushes = [torch.randn(size, generator=torch.Generator().manual_seed(at)) for at in range(5)]
    for push in pushes[:3]:
        one.update(push)
    other.restore(one.state("binding"))
    for push in pushes[3:]:
        assert one.update(push) == other.update(push)
    for a, b in zip(one.parameters, other.parameters, strict=True):
        assert torch.equal(a, b)
    one.close()
    other.close()


def test_a_stored_state_of_another_run_is_refused():
    book = approved_ledger()

    def crash(report):
        if report.step == 4:
            raise Interrupted

    with pytest.raises(Interrupted):
        run(adapted(), book, progress=crash)
    with pytest.raises(ParameterError, match="another run"):
        run(adapted(seed=5), book)
    with pytest.raises(ParameterError, match="another run"):
        run(adapted(), book, tuned=settings(learning_rate=0.5))
    # Speed may change: it has no part in the result.
    run(adapted(), book, tuned=settings(physical_batch_size=4, engine="opacus"))


def test_a_chunk_over_the_cap_stops_before_its_first_step():
    steps = []
    book = approved_ledger(cap=reserved_epsilon(chunks=2) + 1e-6)
    with pytest.raises(PrivacyBudgetExceeded):
        run(adapted(), book, progress=lambda one: steps.append(one.step))
    assert steps == [1, 2, 3, 4, 5, 6]


def reserved_epsilon(*, chunks):
    book = approved_ledger()
    run(adapted(), book)
    return reserved(book)[chunks - 1].epsilon_after


def test_training_on_public_paths_lowers_their_loss():
    tuned = settings(
        pool_batch_size=len(POOL), physical_batch_size=8, learning_rate=0.02, private_weight=0.0
    )
    result = run(adapted(rank=4), approved_ledger(), privacy=parameters(steps=25), tuned=tuned)
    losses = result.log.public_losses
    assert losses[-1] < 0.8 * losses[0]


def test_private_pool_samples_are_units_of_their_own_and_have_no_exact_gradient():
    privacy = parameters(pool_gradients="private")
    trainer = Trainer(adapted(), units=UNITS, pool=POOL, privacy=privacy, settings=settings())
    assert len(trainer._units) == len(UNITS) + len(POOL)
    assert trainer.step() is None
    trainer.close()
    result = run(adapted(), approved_ledger(), privacy=privacy)
    assert result.log.public_losses == (None,) * 7


@pytest.mark.parametrize("units", [UNITS, ()], ids=["no pool", "no units"])
def test_either_stream_may_be_empty(units):
    result = run(adapted(), approved_ledger(), units=units, pool=() if units else POOL)
    assert len(result.log.public_losses) == 7


@pytest.mark.parametrize("noise", ["discrete_gaussian", "float_gaussian"])
def test_noise_alone_has_the_stated_standard_deviation(noise):
    # d = 672 of 7 steps' first: catches a 25% error; the sampler itself is tested elsewhere.
    privacy = parameters(noise=noise, sampling_probability=1e-12)
    trainer = Trainer(adapted(), units=UNITS, pool=(), privacy=privacy, settings=settings())
    pushed = []
    trainer.update = pushed.append
    for _ in range(5):
        trainer.step()
    trainer.close()
    std = float(torch.stack(pushed).std())
    assert std == pytest.approx(2.0 * 0.5 / 2.0, rel=0.1)


def test_out_of_memory_halves_the_physical_batch_and_changes_nothing_else(caplog):
    def total(limit):
        trainer = Trainer(
            adapted(), units=UNITS, pool=(), privacy=parameters(), settings=settings()
        )
        collect = trainer.source._backward

        def short_of_memory(batch):
            if len(batch.examples) > limit:
                raise torch.OutOfMemoryError("no room")
            return collect(batch)

        trainer.source._backward = short_of_memory
        found = trainer.source.clipped_sum(trainer._units, l2_clip_norm=0.5, grid=None)
        trainer.close()
        return found

    full, halved = total(99), total(3)
    assert full.units == halved.units == 4
    torch.testing.assert_close(full.values(), halved.values(), rtol=1e-4, atol=1e-6)
    assert "going on with" in caplog.text
    with pytest.raises(ParameterError, match="does not fit into memory"):
        total(2)


class TestRefusedBeforeAnythingIsSpent:
    def refuse(self, message, **changes):
        book = approved_ledger()
        with pytest.raises(ParameterError, match=message):
            run(changes.pop("lm", None) or adapted(), book, **changes)
        assert not reserved(book)

    def test_a_unit_larger_than_the_physical_batch(self):
        self.refuse("physical_batch_size is 2", tuned=settings(physical_batch_size=2))

    def test_two_units_with_one_id(self):
        self.refuse("share one unit_id", units=(*UNITS, UNITS[0]))

    def test_a_model_whose_public_loss_is_not_a_number(self):
        lm = adapted()
        with torch.no_grad():
            next(lm.model.parameters()).fill_(float("nan"))
        self.refuse("NaN or infinity before training; nothing was spent", lm=lm)

    def test_a_model_without_adapters(self):
        lm = small_model()
        for one in lm.model.parameters():
            one.requires_grad_(False)
        self.refuse("adapters", lm=lm)

    def test_nothing_to_learn(self):
        self.refuse("nothing to learn", units=(), pool=())

    def test_cuda_where_there_is_none(self):
        if torch.cuda.is_available():
            pytest.skip("this machine has a CUDA device")
        self.refuse("sees no CUDA device", tuned=settings(device="cuda"))

    def test_an_unknown_device(self):
        self.refuse("not known to torch", tuned=settings(device="abacus"))


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
        ("noise", "laplace"),
        ("std_steps", 15),
    ],
)
def test_privacy_parameters_out_of_range_are_refused(field, value):
    with pytest.raises(ParameterError):
        parameters(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("engine", "fast"),
        ("precision", "float16"),
        ("schedule", "cosine"),
        ("physical_batch_size", 0),
        ("pool_batch_size", -1),
        ("steps_per_reservation", 0),
        ("private_weight", -1.0),
        ("learning_rate", 0.0),
        ("weight_decay", float("nan")),
        ("threads", 0),
    ],
)
def test_trainer_settings_out_of_range_are_refused(field, value):
    with pytest.raises(ParameterError, match=field):
        settings(**{field: value})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_sums_are_those_of_the_cpu():
    def total(device):
        trainer = Trainer(
            adapted(),
            units=UNITS,
            pool=(),
            privacy=parameters(),
            settings=settings(device=device, precision="float32"),
        )
        found = trainer.source.clipped_sum(trainer._units, l2_clip_norm=0.5, grid=None)
        trainer.close()
        return found.values().cpu()

    torch.testing.assert_close(total("cuda"), total("cpu"), rtol=1e-3, atol=1e-4)
