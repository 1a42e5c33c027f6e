"""Health and metrics over HTTP on an address of their own: ids and counts, nothing else.

Plain HTTP without a password, so the address belongs on the loopback interface or behind what
your monitoring uses; the port of the federation never answers here.
"""

from __future__ import annotations

import http.server
import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lada_protocol.events import Waiting
from lada_protocol.wire.limits import join_address, split_address
from lada_secure.errors import LadaError, ParameterError
from lada_server.rpc.service import RunningServer
from lada_server.study.status import newest_event

if TYPE_CHECKING:
    from prometheus_client.core import Metric

LOG = logging.getLogger(__name__)

# A client that is slow or silent gives its thread back.
TIMEOUT_S: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Monitored:
    """What is shown of a server. events: the coordinator's event file."""

    server: RunningServer
    events: Path

    def health(self) -> tuple[int, dict[str, object]]:
        """HTTP status and body of /healthz."""
        try:
            self.server.store.check()
        except LadaError as error:
            return 503, {"status": "failing", "because": str(error)}
        return 200, {"status": "ok"}

    def collect(self) -> Iterator[Metric]:
        """What /metrics shows, as prometheus_client asks for it."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        calls = CounterMetricFamily("lada_calls", "Calls let in.", labels=["party"])
        moved = CounterMetricFamily(
            "lada_payload_bytes", "Payload from and to a party.", labels=["party", "direction"]
        )
        refusals = CounterMetricFamily(
            "lada_refusals", "Refused calls by error code.", labels=["party", "reason"]
        )
        opened = GaugeMetricFamily("lada_open_calls", "Calls now open.", labels=["party"])
        last = GaugeMetricFamily(
            "lada_last_call_timestamp_seconds", "Last call; 0 for never.", labels=["party"]
        )
        for party, activity in self.server.gate.activity().items():
            calls.add_metric([party], activity.calls)
            moved.add_metric([party, "up"], activity.up_bytes)
            moved.add_metric([party, "down"], activity.down_bytes)
            opened.add_metric([party], activity.open_calls)
            last.add_metric([party], activity.last_call_s)
            for reason, count in activity.refusals.items():
                refusals.add_metric([party, reason], count)
        for reason, count in self.server.gate.strangers().items():
            refusals.add_metric(["", reason], count)
        yield from (calls, moved, refusals, opened, last)
        ends = self.server.identity.credentials().tls_certificate.not_valid_after_utc
        yield GaugeMetricFamily(
            "lada_certificate_end_timestamp_seconds",
            "End of the coordinator's own certificate.",
            value=ends.timestamp(),
        )
        listed = self.server.identity.revocations()
        yield GaugeMetricFamily(
            "lada_revocation_list_number",
            "Number of the revocation list in force; 0 for none.",
            value=0 if listed is None else listed.number,
        )
        event = newest_event(self.events)
        if event is None:
            return
        yield GaugeMetricFamily("lada_round", "Round of the study.", value=event.round_id)
        waiting = GaugeMetricFamily(
            "lada_waiting_since_timestamp_seconds",
            "Since when the coordinator waits for a party.",
            labels=["party"],
        )
        if isinstance(event, Waiting):
            for party in event.awaited:
                waiting.add_metric([party], event.time_s - event.waited_s)
        yield waiting


@contextmanager
def monitoring(listen: str, monitored: Monitored) -> Iterator[str]:
    """Answer GET /healthz and GET /metrics on `listen` (host:port); yields host:port in use.

    Raises: ParameterError: the address cannot be used, or prometheus_client is not installed.
    """
    try:
        from prometheus_client import CollectorRegistry, generate_latest
        from prometheus_client.exposition import CONTENT_TYPE_LATEST
    except ImportError as error:
        raise ParameterError(
            "monitor: metrics need the package prometheus_client; install it, or remove the key"
        ) from error
    registry = CollectorRegistry(auto_describe=False)
    registry.register(monitored)

    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = TIMEOUT_S
        server_version = "lada"
        sys_version = ""

        def do_GET(self) -> None:
            if self.path == "/healthz":
                status, body = monitored.health()
                self._send(status, "application/json", json.dumps(body).encode("utf-8"))
            elif self.path == "/metrics":
                self._send(200, CONTENT_TYPE_LATEST, generate_latest(registry))
            else:
                self._send(404, "text/plain", b"GET /healthz or /metrics\n")

        def _send(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            LOG.debug("monitor: %s", format % arguments)

    try:
        server = http.server.ThreadingHTTPServer(split_address(listen), Handler)
    except OSError as error:
        raise ParameterError(
            f"monitor: cannot listen on {listen}: {error.strerror}; choose another address"
        ) from error
    with server:
        thread = threading.Thread(target=server.serve_forever, name="monitor", daemon=True)
        thread.start()
        host, port = server.server_address[:2]
        try:
            yield join_address(str(host), int(port))
        finally:
            server.shutdown()
            thread.join()
