"""What lies between two parties: a link that counts, slows down and breaks, and a proxy."""

import http.server
import select
import socket
import threading
import time
from contextlib import contextmanager, suppress


class Tunnel:
    """A TCP relay that counts bytes, and cuts connections after so many bytes up or down.

    Args: port: where it leads. cuts_up, cuts_down: bytes of all connections together after which
      the connection that carries them is cut. bits_per_s, delay_s: of each direction; 0 for none.
    """

    def __init__(self, port, *, cuts_up=(), cuts_down=(), bits_per_s=0, delay_s=0.0):
        self.up_bytes = self.down_bytes = self.connections = self.cut = 0
        self.first_down = []
        self._port, self._bits_per_s, self._delay_s = port, bits_per_s, delay_s
        self._cuts = {"up": sorted(cuts_up), "down": sorted(cuts_down)}
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._listener.close()

    def _accept(self):
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            far = socket.create_connection(("127.0.0.1", self._port))
            for source, target, way in ((near, far, "up"), (far, near, "down")):
                threading.Thread(
                    target=self._relay, args=(source, target, way), daemon=True
                ).start()

    def _relay(self, source, target, way):
        first = True
        with suppress(OSError):
            while data := source.recv(16_384):
                if first and way == "down":
                    self.first_down.append(data)
                first = False
                if self._bits_per_s:
                    time.sleep(
                        self._delay_s * (len(data) < 1000) + 8 * len(data) / self._bits_per_s
                    )
                target.sendall(data)
                if self._counted(way, len(data)):
                    break
        for one in (source, target):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _counted(self, way, size):
        with self._lock:
            if way == "up":
                self.up_bytes += size
            else:
                self.down_bytes += size
            total = self.up_bytes if way == "up" else self.down_bytes
            if not self._cuts[way] or total < self._cuts[way][0]:
                return False
            self._cuts[way].pop(0)
            self.cut += 1
            return True


@contextmanager
def connect_proxy(port):
    """An HTTP CONNECT proxy that records what it was asked for and always leads to `port`."""
    seen = []

    class Proxy(http.server.BaseHTTPRequestHandler):
        def do_CONNECT(self):
            seen.append(self.path)
            with socket.create_connection(("127.0.0.1", port)) as far:
                self.send_response(200)
                self.end_headers()
                near = self.connection
                while True:
                    for one in select.select([near, far], [], [])[0]:
                        data = one.recv(65_536)
                        if not data:
                            return
                        (far if one is near else near).sendall(data)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        proxy.daemon_threads = True
        thread = threading.Thread(target=proxy.serve_forever, daemon=True)
        thread.start()
        yield f"127.0.0.1:{proxy.server_port}", seen
        proxy.shutdown()
        thread.join()
