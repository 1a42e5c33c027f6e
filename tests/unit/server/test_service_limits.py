"""How much one peer may ask of the coordinator."""

import pytest

from lada_secure.errors import ParameterError, PeerError
from lada_server.limits import CallGate, PeerLimits


class Clock:
    """Seconds that pass when told."""

    now = 100.0

    def __call__(self):
        return self.now


def gate_of(clock, **limits):
    return CallGate(PeerLimits(**limits), ["a", "b"], clock)


def test_a_burst_is_allowed_then_the_rate_holds():
    clock = Clock()
    gate = gate_of(clock, calls_per_s=2, burst_calls=3)

    for pause_s, calls in ((0.0, 3), (1.0, 2), (1000.0, 3)):
        clock.now += pause_s
        for _ in range(calls):
            with gate.call("a"):
                pass
        with pytest.raises(PeerError) as refused, gate.call("a"):
            pass
        assert refused.value.reason == "rate_limited"


def test_one_peer_does_not_use_up_anothers_calls():
    gate = gate_of(Clock(), burst_calls=1)
    with gate.call("a"):
        pass
    with pytest.raises(PeerError), gate.call("a"):
        pass
    with gate.call("b"):
        pass


def test_calls_that_are_open_at_once_are_bounded_and_given_back_on_failure():
    gate = gate_of(Clock(), concurrent_calls=2)
    with gate.call("a"), gate.call("a"):
        with pytest.raises(PeerError, match="2 calls open"), gate.call("a"):
            pass
        with pytest.raises(KeyError, match="inside"), gate.call("b"):
            raise KeyError("inside")
    with gate.call("a"), gate.call("a"), gate.call("b"), gate.call("b"):
        pass


@pytest.mark.parametrize("name", ["calls_per_s", "burst_calls", "concurrent_calls"])
def test_limits_below_one_are_refused(name):
    with pytest.raises(ParameterError):
        PeerLimits(**{name: 0})
