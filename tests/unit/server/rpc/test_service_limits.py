"""How much one peer may ask of the coordinator."""

import pytest

from lada_secure.errors import ParameterError, PeerError
from lada_server.rpc.limits import CallGate, PeerLimits


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


def test_rubbish_cuts_its_sender_off_for_a_while_and_nobody_else():
    clock = Clock()
    gate = gate_of(clock, faults_per_minute=3, cut_off_s=60)

    def fault(party, reason="malformed"):
        with pytest.raises(PeerError) as refused, gate.call(party):
            raise PeerError("no", reason=reason, peer=party)
        return refused.value.reason

    assert [fault("a", "equivocation") for _ in range(9)] == ["equivocation"] * 9
    assert [fault("a") for _ in range(5)] == ["malformed"] * 3 + ["cut_off"] * 2
    with gate.call("b"):
        pass
    clock.now += 59
    assert fault("a") == "cut_off"
    clock.now += 2
    assert fault("a") == "malformed"


def test_a_few_faults_over_a_long_time_are_forgiven():
    clock = Clock()
    gate = gate_of(clock, faults_per_minute=3)
    for _ in range(50):
        clock.now += 30
        with pytest.raises(PeerError) as refused, gate.call("a"):
            raise PeerError("no", reason="malformed", peer="a")
        assert refused.value.reason == "malformed"


def test_bytes_beyond_the_rate_are_paused_for_by_their_party_alone():
    clock = Clock()
    gate = gate_of(clock, bytes_per_s=1000)
    assert gate.pause_s("a", 1000) == 0
    assert gate.pause_s("a", 500) == pytest.approx(0.5)
    assert gate.pause_s("b", 1000) == 0
    clock.now += 1.5
    assert gate.pause_s("a", 1000) == 0


LIMITS = (
    *("calls_per_s", "burst_calls", "concurrent_calls"),
    *("bytes_per_s", "faults_per_minute", "cut_off_s"),
)


@pytest.mark.parametrize("name", LIMITS)
def test_limits_below_one_are_refused(name):
    with pytest.raises(ParameterError):
        PeerLimits(**{name: 0})
