"""How much one peer may ask of the coordinator."""

import pytest
from pydantic import ValidationError

from lada_protocol.wire.transport_settings import TransportSettings
from lada_secure.errors import PeerError
from lada_server.rpc import limits as limits_module
from lada_server.rpc.limits import CallGate


class Clock:
    """Seconds that pass when told."""

    now = 100.0

    def __call__(self):
        return self.now


def gate_of(clock, **limits):
    return CallGate(TransportSettings(**limits), ["a", "b"], clock=clock)


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


def test_rubbish_cuts_its_sender_off_for_a_while_and_nobody_else(monkeypatch):
    monkeypatch.setattr(limits_module, "FAULTS_PER_MINUTE", 3)
    clock = Clock()
    gate = gate_of(clock)

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


def test_a_few_faults_over_a_long_time_are_forgiven(monkeypatch):
    monkeypatch.setattr(limits_module, "FAULTS_PER_MINUTE", 3)
    clock = Clock()
    gate = gate_of(clock)
    for _ in range(50):
        clock.now += 30
        with pytest.raises(PeerError) as refused, gate.call("a"):
            raise PeerError("no", reason="malformed", peer="a")
        assert refused.value.reason == "malformed"


def test_bytes_beyond_the_rate_are_paused_for_by_their_party_alone():
    clock = Clock()
    second = 1 << 20
    gate = gate_of(clock, bytes_per_s=second)
    assert gate.moved("a", up_bytes=second) == 0
    assert gate.moved("a", down_bytes=second // 2) == pytest.approx(0.5)
    assert gate.moved("b", up_bytes=second) == 0
    clock.now += 1.5
    assert gate.moved("a", up_bytes=second) == 0


@pytest.mark.parametrize("name", ["calls_per_s", "burst_calls", "concurrent_calls", "bytes_per_s"])
def test_limits_below_one_are_refused(name):
    with pytest.raises(ValidationError):
        TransportSettings(**{name: 0})
