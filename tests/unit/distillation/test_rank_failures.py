"""Training processes that die, cannot start or do not fit: told by name, and paid for."""

from __future__ import annotations

import functools
import os
import signal

import pytest
from trainer_doubles import PLAN_HASH, approved_ledger, example, small_model, units_of_sizes

from lada_secure.distillation.adapters import AdapterSettings, attach_adapters
from lada_secure.distillation.parameters import DpSgdParameters, TrainerSettings
from lada_secure.distillation.rank_processes import open_ranks
from lada_secure.distillation.ranks import ONE_RANK
from lada_secure.distillation.training import distil, training_spec
from lada_secure.errors import LocalProtocolError, ParameterError, TransportError
from lada_secure.privacy.entries import CommitEntry, ReserveEntry

UNITS = units_of_sizes(1, 2, 1)
POOL = tuple(example(at) for at in range(50, 57))
PRIVACY = DpSgdParameters(
    noise_multiplier=2.0,
    l2_clip_norm=0.5,
    sampling_probability=0.5,
    expected_units=2.0,
    steps=7,
    pool_gradients="public",
)


def build(rank: int = 2):
    """The model of every process."""
    return attach_adapters(small_model(), AdapterSettings(rank=rank))


def fails_to_build():
    raise ParameterError("no such weights")


def run(ranks, book, *, lm=None, progress=None):
    return distil(
        lm or build(),
        units=UNITS,
        pool=POOL,
        privacy=PRIVACY,
        settings=TrainerSettings(
            pool_batch_size=3, physical_batch_size=3, steps_per_reservation=3, ranks=ranks
        ),
        book=book,
        spec=training_spec(PRIVACY, study_id="study", plan_hash=PLAN_HASH, round_id=1),
        progress=progress,
    )


def reserved_steps(book):
    return [one.event.steps for one in book.entries() if isinstance(one, ReserveEntry)]


def test_a_killed_rank_ends_the_run_with_the_ledger_paid_and_one_process_can_go_on():
    book = approved_ledger()
    with open_ranks(2, build=functools.partial(build, 2)) as ranks:
        follower = ranks._followers[0][0]

        def kill(report):
            if report.step == 4:
                os.kill(follower.pid, signal.SIGKILL)

        with pytest.raises(TransportError, match=r"training rank 1 ended.*paid for"):
            run(ranks, book, progress=kill)
        assert reserved_steps(book) == [3, 3]
        assert sum(isinstance(one, CommitEntry) for one in book.entries()) == 1
        with pytest.raises((LocalProtocolError, TransportError)):
            run(ranks, book)
        assert reserved_steps(book) == [3, 3]
    assert not follower.is_alive()
    result = run(ONE_RANK, book)
    assert result.log.resumed_at_step == 3
    assert reserved_steps(book) == [3, 3, 3, 1]


@pytest.mark.slow
def test_adapters_that_a_follower_cannot_take_are_refused_before_anything_is_spent():
    book = approved_ledger()
    with (
        pytest.raises(TransportError, match="training rank 1 failed: ParameterError"),
        open_ranks(2, build=build) as ranks,
    ):
        run(ranks, book, lm=build(3))
    assert not reserved_steps(book)


@pytest.mark.slow
def test_a_follower_that_cannot_start_says_why():
    with (
        pytest.raises(TransportError, match="rank 1 failed: ParameterError: no such weights"),
        open_ranks(2, build=fails_to_build),
    ):
        pass
