"""The relay between a party and the coordinator: cut, held, slowed, and nothing lost."""

import contextlib
import socket
import threading
import time

import pytest

from .relay import Relay


@pytest.fixture
def echo():
    """A port that sends everything back."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(one):
        with contextlib.suppress(OSError), one:
            while data := one.recv(4096):
                one.sendall(data)

    def accept():
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield listener.getsockname()[1]
    listener.close()


@pytest.fixture
def relay(echo):
    one = Relay(echo)
    yield one
    one.close()


def connect(relay):
    one = socket.create_connection(("127.0.0.1", relay.port), timeout=5.0)
    one.settimeout(5.0)
    return one


def test_everything_goes_through_in_order(relay):
    sent = bytes(range(256)) * 500
    with connect(relay) as one:
        threading.Thread(target=one.sendall, args=(sent,), daemon=True).start()
        got = b""
        while len(got) < len(sent):
            got += one.recv(65_536)
    assert got == sent


def test_a_cut_resets_what_runs_and_what_comes_until_it_is_mended(relay):
    with connect(relay) as one:
        one.sendall(b"x")
        assert one.recv(1) == b"x"
        relay.cut()
        assert ended(one)
    assert turned_away(relay)
    relay.mend()
    with connect(relay) as one:
        one.sendall(b"y")
        assert one.recv(1) == b"y"


def turned_away(relay):
    """Whether a new connection ends at once, in the middle of its handshake or just after."""
    try:
        with connect(relay) as one:
            return ended(one)
    except OSError:
        return True


def ended(one):
    try:
        one.sendall(b"?")
        return one.recv(1) == b""
    except OSError:
        return True


def test_what_is_held_arrives_later_and_whole(relay):
    with connect(relay) as one:
        relay.hold("up")
        one.sendall(b"later")
        one.settimeout(0.3)
        with pytest.raises(TimeoutError):
            one.recv(1)
        relay.let_flow()
        one.settimeout(5.0)
        assert one.recv(5) == b"later"


def test_a_slow_link_delays_both_ways(relay):
    relay.delay_s = 0.15
    with connect(relay) as one:
        began = time.monotonic()
        one.sendall(b"x")
        assert one.recv(1) == b"x"
        assert time.monotonic() - began >= 0.3


def test_where_nobody_listens_behind_it_connections_end_at_once():
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    relay = Relay(port)
    assert turned_away(relay)
    relay.close()
