"""What lies between one party and the coordinator: a TCP relay that can be cut, held and slowed.

It relays TLS without reading it. Bytes are never lost or swapped, which TCP would not let happen
either: loss shows as delay, and messages change their order only across connections.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import struct
import threading
import time
from typing import Final

_PIECE: Final = 16_384
# Bytes on their way; a full link pushes back, as a real one does.
_IN_FLIGHT: Final = 64
_RESET: Final = struct.pack("ii", 1, 0)


class Relay:
    """A link of one party. All settings may be changed while it runs.

    delay_s, bits_per_s: of each direction; 0 for none.
    """

    def __init__(self, port: int) -> None:
        self._far_port = port
        self.delay_s = 0.0
        self.bits_per_s = 0.0
        self.connections = 0
        self._down = threading.Event()
        self._flowing = {"up": threading.Event(), "down": threading.Event()}
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.let_flow()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """End all connections and listen no more."""
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        """Reset every connection now, and every new one until `mend`."""
        self._down.set()
        with self._lock:
            found, self._open = self._open, set()
        for one in found:
            _reset(one)

    def mend(self) -> None:
        """Let new connections through again."""
        self._down.clear()

    def hold(self, *ways: str) -> None:
        """Keep what comes ("up": from the party, "down": to it) until `let_flow`."""
        for way in ways:
            self._flowing[way].clear()

    def let_flow(self) -> None:
        """Deliver what was held."""
        for gate in self._flowing.values():
            gate.set()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            if self._down.is_set():
                _reset(near)
                continue
            try:
                far = socket.create_connection(("127.0.0.1", self._far_port), timeout=4.0)
            except OSError:
                # As an SSH tunnel or a load balancer does whose target is away.
                near.close()
                continue
            far.settimeout(None)
            with self._lock:
                self._open |= {near, far}
            for source, target, way in ((near, far, "up"), (far, near, "down")):
                pieces: queue.Queue[tuple[float, bytes]] = queue.Queue(_IN_FLIGHT)
                for work in (self._take, self._give):
                    threading.Thread(
                        target=work, args=(source, target, way, pieces), daemon=True
                    ).start()

    def _take(
        self,
        source: socket.socket,
        _target: socket.socket,
        _way: str,
        pieces: queue.Queue[tuple[float, bytes]],
    ) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(_PIECE):
                pieces.put((time.monotonic() + self.delay_s, data))
        pieces.put((0.0, b""))

    def _give(
        self,
        source: socket.socket,
        target: socket.socket,
        way: str,
        pieces: queue.Queue[tuple[float, bytes]],
    ) -> None:
        with contextlib.suppress(OSError):
            while True:
                due_s, data = pieces.get()
                self._flowing[way].wait()
                if not data:
                    break
                time.sleep(max(0.0, due_s - time.monotonic()))
                if self.bits_per_s:
                    time.sleep(8 * len(data) / self.bits_per_s)
                target.sendall(data)
        for one in (source, target):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        with self._lock:
            self._open -= {source, target}


def _reset(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        # A thread may wait in this socket: shutdown wakes it, close alone would not.
        one.shutdown(socket.SHUT_RDWR)
    one.close()
