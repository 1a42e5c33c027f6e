"""Pauses between tries: spread out, bounded, and given up only when nothing moves."""

import pytest

from lada_clients.net.connection import (
    FIRST_PAUSE_S,
    HANG_UPS_BELIEVED_AFTER_S,
    MAX_HANG_UPS,
    BackOff,
    HungUp,
    NotNow,
)
from lada_secure.errors import TransportError


class Clock:
    """Seconds that pass when told."""

    now = 0.0

    def __call__(self):
        return self.now


def back_off(clock, **options):
    return BackOff(
        what="post", **{"patience_s": 1e9, "longest_pause_s": 8.0, **options}, clock=clock
    )


def test_pauses_fill_an_interval_that_doubles_up_to_the_longest():
    tries = [back_off(Clock()) for _ in range(200)]
    for bound in (FIRST_PAUSE_S, 1.0, 2.0, 4.0, 8.0, 8.0):
        pauses = [one.pause_s(NotNow("away"), moved=0) for one in tries]
        assert 0 <= min(pauses) < 0.2 * bound
        assert 0.8 * bound < max(pauses) <= bound


def test_patience_ends_and_says_after_how_long_and_why():
    clock = Clock()
    one = back_off(clock, patience_s=10)
    one.pause_s(NotNow("away"), moved=0)
    clock.now = 10.0
    with pytest.raises(TransportError, match="cannot post: gave up after 10 s: away"):
        one.pause_s(NotNow("away"), moved=0)


def test_progress_renews_patience_so_a_long_upload_over_a_bad_link_goes_on():
    clock = Clock()
    one = back_off(clock, patience_s=10)
    for moved in range(1, 100):
        clock.now += 9.0
        assert one.pause_s(NotNow("cut"), moved=moved) <= FIRST_PAUSE_S


def test_an_end_that_keeps_hanging_up_is_believed_after_a_while():
    clock = Clock()
    one = back_off(clock)
    for _ in range(3 * MAX_HANG_UPS):
        one.pause_s(HungUp("does not accept our certificate"), moved=0)
    clock.now = HANG_UPS_BELIEVED_AFTER_S
    with pytest.raises(TransportError, match="does not accept our certificate"):
        one.pause_s(HungUp("does not accept our certificate"), moved=0)


def test_an_end_that_has_served_us_may_hang_up_for_as_long_as_patience_lasts():
    clock = Clock()
    one = back_off(clock, patience_s=600, known_there=True)
    for _ in range(100):
        clock.now += 5.0
        one.pause_s(HungUp("a tunnel whose far end is away"), moved=0)
    clock.now = 600.0
    with pytest.raises(TransportError, match="gave up after 600 s: a tunnel"):
        one.pause_s(HungUp("a tunnel whose far end is away"), moved=0)


def test_few_hang_ups_far_apart_are_not_believed():
    clock = Clock()
    one = back_off(clock)
    for _ in range(MAX_HANG_UPS - 1):
        clock.now += HANG_UPS_BELIEVED_AFTER_S
        one.pause_s(HungUp("it stops"), moved=0)
    one.pause_s(NotNow("refused"), moved=0)
    one.pause_s(HungUp("it stops"), moved=0)
