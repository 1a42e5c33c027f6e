"""Training over two processes: the same sums as one, noise once, and a process that dies.

Followers are real processes that talk over gloo. Starting one takes seconds, so most tests share
a pair; a run leaves it as it found it.
"""

from __future__ import annotations

import pytest
import torch
from alpha import ALPHA
from scipy.stats import chi2
from trainer_doubles import PLAN_HASH, approved_ledger, example, small_model, units_of_sizes

from lada_secure.distillation import trainer as trainer_module
from lada_secure.distillation.adapters import AdapterSettings, attach_adapters, load_adapters
from lada_secure.distillation.batching import share_of
from lada_secure.distillation.clipping import ClippedSum
from lada_secure.distillation.examples import EncodedExample, EncodedUnit, TokenRow
from lada_secure.distillation.parameters import DpSgdParameters, TrainerSettings
from lada_secure.distillation.rank_processes import open_ranks
from lada_secure.distillation.ranks import ONE_RANK
from lada_secure.distillation.trainer import Trainer
from lada_secure.distillation.training import distil, training_spec
from lada_secure.errors import ParameterError
from lada_secure.privacy.entries import ReserveEntry

POOL = tuple(example(at) for at in range(50, 57))


class Interrupted(Exception):
    """Stands for whatever ends a run between two steps."""


def build(rank: int = 2):
    """The model of every process; followers get the leader's adapter weights on top."""
    return attach_adapters(small_model(), AdapterSettings(rank=rank))


@pytest.fixture(scope="module")
def two_ranks():
    with open_ranks(2, build=build) as ranks:
        yield ranks


def parameters(**changes):
    values = {
        "noise_multiplier": 2.0,
        "l2_clip_norm": 0.5,
        "sampling_probability": 1.0,
        "expected_units": 4.0,
        "steps": 7,
        "pool_gradients": "public",
    }
    return DpSgdParameters(**{**values, **changes})


def run(ranks, book=None, *, units, pool=(), privacy=None, progress=None, lm=None, **changes):
    privacy = privacy or parameters()
    lm = lm or build()
    values = {"pool_batch_size": 3, "physical_batch_size": 3, "steps_per_reservation": 3}
    result = distil(
        lm,
        units=units,
        pool=pool,
        privacy=privacy,
        settings=TrainerSettings(**{**values, **changes}, ranks=ranks),
        book=book or approved_ledger(),
        spec=training_spec(privacy, study_id="study", plan_hash=PLAN_HASH, round_id=1),
        progress=progress,
        open_trainer=changes.pop("open_trainer", Trainer),
    )
    return result, [one.detach().clone() for one in lm.model.parameters() if one.requires_grad]


def without_noise(total, privacy):
    """What the step would be at noise 0: the exact integers themselves."""
    return total.integers().double() * (0.5 / privacy.grid().clip_steps / privacy.expected_units)


def reserved(book):
    return [one for one in book.entries() if isinstance(one, ReserveEntry)]


@pytest.mark.parametrize("engine", ["fused", "opacus"])
def test_at_noise_0_two_processes_end_with_the_very_weights_of_one(two_ranks, monkeypatch, engine):
    monkeypatch.setattr(trainer_module, "noised_gradient", without_noise)
    # Three examples a unit and a batch: a unit meets the same company however units are dealt out,
    # so its gradient has the same bits, and integers add up to the same sum in any order.
    units = units_of_sizes(3, 3, 3, 3, 3)
    start = [one.detach() for one in build().model.parameters() if one.requires_grad]
    _, alone = run(ONE_RANK, units=units, engine=engine)
    _, together = run(two_ranks, units=units, engine=engine)
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(alone, start, strict=True))


def test_units_of_any_size_and_pool_samples_give_the_same_up_to_rounding(two_ranks, monkeypatch):
    monkeypatch.setattr(trainer_module, "noised_gradient", without_noise)
    units = units_of_sizes(1, 4, 2, 8, 1)
    one, alone = run(ONE_RANK, units=units, pool=POOL, physical_batch_size=8)
    two, together = run(two_ranks, units=units, pool=POOL, physical_batch_size=8)
    for a, b in zip(alone, together, strict=True):
        torch.testing.assert_close(a, b, rtol=0.0, atol=1e-5)
    assert two.log.public_losses == pytest.approx(one.log.public_losses, rel=1e-5)


def test_without_private_units_the_pool_is_shared_all_the_same(two_ranks, monkeypatch):
    monkeypatch.setattr(trainer_module, "noised_gradient", without_noise)
    ends = [run(ranks, units=(), pool=POOL)[1] for ranks in (ONE_RANK, two_ranks)]
    for a, b in zip(*ends, strict=True):
        torch.testing.assert_close(a, b, rtol=0.0, atol=1e-5)


def test_adapters_that_were_trained_before_reach_the_other_process(two_ranks, monkeypatch):
    monkeypatch.setattr(trainer_module, "noised_gradient", without_noise)
    units = units_of_sizes(3, 3)
    first, _ = run(ONE_RANK, units=units)
    ends = []
    for ranks in (ONE_RANK, two_ranks):
        lm = build()
        load_adapters(lm, first.adapters.value)
        ends.append(run(ranks, units=units, lm=lm)[1])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_noise_is_added_once(two_ranks, monkeypatch):
    pushed = []
    update = Trainer.update

    def seen(self, private_gradient):
        pushed.append(private_gradient.clone())
        return update(self, private_gradient)

    monkeypatch.setattr(Trainer, "update", seen)
    # Nobody joins, so the sum over both ranks is noise alone.
    privacy = parameters(sampling_probability=1e-12, steps=14)
    run(two_ranks, units=units_of_sizes(1, 2), privacy=privacy)
    drawn = torch.cat(pushed).double()
    std = 2.0 * 0.5 / 4.0
    # n = 14 x 672 = 9,408 catches a 7% error of the standard deviation; noise of both ranks would
    # be 41% too wide.
    n = drawn.numel()
    statistic = float((drawn / std).square().sum())
    assert chi2.ppf(ALPHA / 2, n) < statistic < chi2.ppf(1 - ALPHA / 2, n)
    assert len({tuple(one[:8].tolist()) for one in pushed}) == 14


def test_the_ledger_is_reserved_once_per_chunk_before_any_rank_starts_it(two_ranks):
    book, seen = approved_ledger(), []
    run(
        two_ranks,
        book,
        units=units_of_sizes(1, 2, 1),
        pool=POOL,
        progress=lambda one: seen.append((one.step, len(reserved(book)))),
    )
    assert seen == [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2), (6, 2), (7, 3)]
    assert [one.event.steps for one in reserved(book)] == [3, 3, 1]


def test_an_interrupted_run_goes_on_from_its_last_commit_with_the_same_processes(two_ranks):
    book, units = approved_ledger(), units_of_sizes(1, 2, 1)

    def crash(report):
        if report.step == 5:
            raise Interrupted

    with pytest.raises(Interrupted):
        run(two_ranks, book, units=units, pool=POOL, progress=crash)
    steps = []
    result, _ = run(
        two_ranks, book, units=units, pool=POOL, progress=lambda one: steps.append(one.step)
    )
    assert steps == [4, 5, 6, 7]
    assert result.log.resumed_at_step == 3
    assert sum(one.event.steps for one in reserved(book)) == 7 + 3


def test_what_is_refused_is_refused_before_anything_is_spent(two_ranks):
    book = approved_ledger()
    with pytest.raises(ParameterError, match="physical_batch_size is 2"):
        run(two_ranks, book, units=units_of_sizes(3), physical_batch_size=2)
    assert not reserved(book)


def test_a_second_group_of_processes_in_one_process_is_refused(two_ranks):
    with pytest.raises(ParameterError, match="open already"), open_ranks(2, build=build):
        pass


@pytest.mark.parametrize("count", [0, 65])
def test_a_number_of_processes_out_of_range_is_refused(count):
    with pytest.raises(ParameterError, match="expected 1 to 64"), open_ranks(count, build=build):
        pass


def test_one_process_starts_nothing():
    with open_ranks(1, build=build) as ranks:
        assert ranks is ONE_RANK


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_every_unit_is_dealt_whole_to_exactly_one_rank(ranks):
    units = [
        EncodedUnit(
            unit_id=f"u{at}",
            examples=tuple(
                EncodedExample(
                    example_id=f"{at}.{number}",
                    path=TokenRow(tokens=tuple(range(2 + at % 5)), target_start=1),
                    own_path=None,
                )
                for number in range(1 + at % 3)
            ),
        )
        for at in range(11)
    ]
    shares = [share_of(units, rank=rank, ranks=ranks) for rank in range(ranks)]
    dealt = [unit for share in shares for unit in share]
    assert sorted(one.unit_id for one in dealt) == sorted(one.unit_id for one in units)
    assert all(unit in units for unit in dealt)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_integer_sums_over_ranks_are_exact_where_floats_would_round():
    class Pair:
        """Two ranks in one process: the other one's share is `other`."""

        rank, size = 0, 2

        def __init__(self, *other):
            self.other = list(other)

        def sum_to_first(self, values):
            return values + self.other.pop(0)

    parameter = torch.nn.Parameter(torch.zeros(2))
    grid = parameters().grid()
    total = ClippedSum([parameter], l2_clip_norm=0.5, grid=grid)
    total.add([torch.tensor([[0.5, 0.0]])])
    mine = total.integers().clone()
    total.gather(Pair(torch.tensor([2**40 + 1, -3]), torch.tensor([7, 2])))
    assert torch.equal(total.integers(), mine + torch.tensor([2**40 + 1, -3]))
    assert (total.units, total.non_finite) == (8, 2)
