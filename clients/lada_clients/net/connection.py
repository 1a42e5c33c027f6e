"""Makes the mutually authenticated connection to the coordinator, or says why it cannot.

`BackOff` says how long to pause before the next try, and when to give it up.

gRPC neither shows the server's certificate to a Python client nor tells why a handshake failed.
So a plain TLS handshake comes first: its errors are readable, and the certificate it obtains is
compared with the roster and then becomes the only root that the gRPC channel trusts. Whoever
else holds a certificate of the study CA cannot stand in for the coordinator.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from secrets import SystemRandom
from typing import Final
from urllib.parse import urlsplit
from urllib.request import getproxies_environment, proxy_bypass

import grpc
from cryptography import x509

from lada_protocol.identity.certificates import (
    certificate_pem,
    key_fingerprint,
    role_host,
    verify_party,
)
from lada_protocol.identity.credentials import Credentials, IdentityFile
from lada_protocol.identity.roster import Roster
from lada_protocol.kinds import Role
from lada_protocol.party_files import LiveIdentity
from lada_protocol.wire.limits import MAX_FRAME_BYTES, MAX_REPLY_BYTES, WINDOW_BYTES, join_address
from lada_protocol.wire.transport_settings import TransportSettings
from lada_secure.errors import PeerError, TransportError

_SERVER_HOST: Final = role_host(Role.COORDINATOR)
FIRST_PAUSE_S: Final = 0.5
# A server that stops hangs up a few times and then refuses; one that goes on for so long, and has
# never taken us, means it. Behind a tunnel or a load balancer a restart looks the same.
MAX_HANG_UPS: Final = 5
HANG_UPS_BELIEVED_AFTER_S: Final = 30.0


class NotNow(TransportError):
    """The coordinator cannot be reached at the moment; trying again later may help."""


class HungUp(NotNow):
    """The other end finished the handshake and then closed: it stops, or refuses our certificate.

    gRPC servers send no alert for a client certificate that they do not accept, so the two look
    alike; a server that stops refuses connections a moment later.
    """


@dataclass(slots=True, kw_only=True)
class BackOff:
    """Pauses with full jitter, each bound twice the one before, until patience is used up.

    Args: what: is repeated, for messages. patience_s: how long nothing may move. longest_pause_s:
      bound of a pause. clock: monotonic seconds. known_there: the other end has served us before,
      so one that hangs up is away rather than unwilling.
    """

    what: str
    patience_s: float
    longest_pause_s: float
    clock: Callable[[], float]
    known_there: bool = False
    since_s: float = 0.0
    _started_s: float = field(init=False)
    _bound_s: float = FIRST_PAUSE_S
    _hung_up: int = 0
    _hanging_since_s: float = 0.0
    _moved: int = 0

    def __post_init__(self) -> None:
        self._started_s = self.clock()

    def pause_s(self, fault: NotNow, *, moved: int) -> float:
        """How long to pause after this fault. `moved`: bytes so far; progress renews patience.

        Raises: TransportError: patience is used up, or the other end keeps hanging up on us.
        """
        if moved > self._moved:
            self._started_s, self._bound_s, self._moved = self.clock(), FIRST_PAUSE_S, moved
        self.since_s = self.clock() - self._started_s
        if not isinstance(fault, HungUp):
            self._hung_up = 0
        elif self._hung_up == 0:
            self._hung_up, self._hanging_since_s = 1, self.clock()
        else:
            self._hung_up += 1
        if self._is_unwilling():
            raise TransportError(f"cannot {self.what}: {fault}") from fault
        if self.since_s + self._bound_s > self.patience_s:
            raise TransportError(
                f"cannot {self.what}: gave up after {self.since_s:.0f} s: {fault}"
            ) from fault
        # Full jitter: 50 sites that lost one link at one instant come back spread out.
        pause_s = SystemRandom().uniform(0.0, self._bound_s)
        self._bound_s = min(2 * self._bound_s, self.longest_pause_s)
        return pause_s

    def _is_unwilling(self) -> bool:
        """Whether the other end hangs up because of who we are."""
        return (
            not self.known_there
            and self._hung_up >= MAX_HANG_UPS
            and self.clock() - self._hanging_since_s >= HANG_UPS_BELIEVED_AFTER_S
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where the coordinator is, and who we are to it.

    Args: host, port: as dialled. folder: our identity folder, which the TLS library reads itself.
      identity: the same folder, checked and followed as it changes.
    """

    host: str
    port: int
    folder: Path
    identity: LiveIdentity
    roster: Roster
    settings: TransportSettings

    @property
    def address(self) -> str:
        """host:port."""
        return join_address(self.host, self.port)


def open_channel(endpoint: Endpoint) -> grpc.Channel:
    """Check the coordinator's certificate against the roster and open a channel to it.

    Raises: NotNow: nobody answers yet. TransportError: the other end is not this study's
      coordinator, or does not accept our certificate.
    """
    proxy = proxy_for(endpoint.host)
    credentials, settings = endpoint.identity.credentials(), endpoint.settings
    server = _server_certificate(endpoint, credentials, proxy)
    tls = grpc.ssl_channel_credentials(
        root_certificates=certificate_pem(server),
        private_key=credentials.tls_key_pem,
        certificate_chain=credentials.tls_certificate_pem,
    )
    options: list[tuple[str, str | int]] = [
        ("grpc.ssl_target_name_override", _SERVER_HOST),
        ("grpc.max_receive_message_length", max(MAX_FRAME_BYTES, MAX_REPLY_BYTES)),
        ("grpc.max_send_message_length", MAX_FRAME_BYTES),
        ("grpc.keepalive_time_ms", round(settings.keepalive_interval_s * 1000)),
        ("grpc.keepalive_timeout_ms", round(settings.keepalive_timeout_s * 1000)),
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", WINDOW_BYTES),
        ("grpc.http2.max_pings_without_data", 0),
        # Retries are ours: they say what they wait for.
        ("grpc.enable_retries", 0),
        # The proxy is decided once, above; gRPC must not come to another conclusion.
        ("grpc.enable_http_proxy", 0),
    ]
    if proxy is not None:
        options[-1] = ("grpc.http_proxy", f"http://{join_address(*proxy)}")
    return grpc.secure_channel(endpoint.address, tls, options=options)


def see_coordinator(endpoint: Endpoint) -> None:
    """What `open_channel` does first, and no more: a handshake, and whose key it shows.

    Raises: as `open_channel`.
    """
    _server_certificate(endpoint, endpoint.identity.credentials(), proxy_for(endpoint.host))


def _server_certificate(
    endpoint: Endpoint, credentials: Credentials, proxy: tuple[str, int] | None
) -> x509.Certificate:
    where = f"coordinator at {endpoint.address}"
    context = _tls_context(endpoint, credentials)
    try:
        with (
            _dial(endpoint, proxy) as plain,
            context.wrap_socket(plain, server_hostname=_SERVER_HOST) as tls,
        ):
            der = tls.getpeercert(binary_form=True)
            # In TLS 1.3 our own certificate is judged after the handshake; the server speaks
            # first, so one byte of its greeting shows that it took us.
            if not tls.recv(1):
                raise _hung_up(where)
    except ssl.SSLError as error:
        raise _tls_fault(where, error) from error
    except ConnectionResetError as error:
        raise _hung_up(where) from error
    except (OSError, http.client.HTTPException) as error:
        fault = _socket_fault(error, endpoint.settings) if proxy is None else _proxy_fault(error)
        if proxy is not None:
            # The coordinator was never reached: whoever reads this must look at the proxy.
            where += f", through the proxy {join_address(*proxy)} that the environment names"
        raise NotNow(f"{where}: {fault}") from error
    if der is None:
        raise TransportError(f"{where} showed no certificate")
    certificate = x509.load_der_x509_certificate(der)
    _check_coordinator(where, certificate, endpoint, ca=credentials.ca)
    return certificate


def _check_coordinator(
    where: str, certificate: x509.Certificate, endpoint: Endpoint, *, ca: x509.Certificate
) -> None:
    roster, coordinator = endpoint.roster, endpoint.roster.coordinator
    found, expected = key_fingerprint(certificate), coordinator.tls_fingerprint
    if found != expected:
        raise TransportError(
            f"{where} shows the key {found[:16]}..., the roster {roster.hash[:16]}... lists "
            f"{expected[:16]}... for {coordinator.id}; check address and roster, somebody may "
            "stand between"
        )
    listed = endpoint.identity.revocations()
    try:
        now = datetime.now(UTC)
        verify_party(certificate, ca=ca, at=now, usage="tls", expected=coordinator.name)
        if listed is not None:
            listed.check(certificate, holder=coordinator.id)
    except PeerError as error:
        raise TransportError(f"{where}: {error}") from error


def _tls_context(endpoint: Endpoint, credentials: Credentials) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])
    context.load_verify_locations(cadata=credentials.ca_pem.decode("ascii"))
    folder, passphrase = endpoint.folder, endpoint.identity.passphrase
    try:
        # An empty password instead of none: the library must never ask at a terminal.
        context.load_cert_chain(
            folder / IdentityFile.TLS,
            folder / IdentityFile.TLS_KEY,
            password="" if passphrase is None else passphrase.value,
        )
    except OSError as error:
        raise TransportError(
            f"{folder}: certificate and key for TLS cannot be loaded: {error.strerror}"
        ) from error
    return context


def _dial(endpoint: Endpoint, proxy: tuple[str, int] | None) -> socket.socket:
    timeout_s = endpoint.settings.connect_timeout_s
    if proxy is None:
        return socket.create_connection((endpoint.host, endpoint.port), timeout=timeout_s)
    tunnel = http.client.HTTPConnection(*proxy, timeout=timeout_s)
    tunnel.set_tunnel(endpoint.host, endpoint.port)
    tunnel.connect()
    return tunnel.sock


def proxy_for(dialled: str) -> tuple[str, int] | None:
    """The HTTP CONNECT proxy that the environment names for this host, if any.

    Raises: TransportError: it has another form than http://host:port.
    """
    proxies = getproxies_environment()
    named = proxies.get("grpc") or proxies.get("https") or proxies.get("http")
    bypassed = proxy_bypass(dialled, proxies) or _in_networks(dialled, proxies.get("no", ""))
    local = dialled in ("localhost", "::1") or dialled.startswith("127.")
    if not named or bypassed or local:
        return None
    url = urlsplit(named if "://" in named else f"http://{named}")
    try:
        host, port = url.hostname, url.port or 80
    except ValueError:
        host, port = None, 0
    if url.scheme != "http" or not host or url.username:
        raise TransportError(
            "the proxy that the environment names must have the form http://host:port, without "
            "user and password"
        )
    return host, port


def _in_networks(host: str, no_proxy: str) -> bool:
    """Whether an address is in a network or address of `no_proxy`, as 192.0.2.0/24 or [::1].

    Python's own rule compares names and their ends only.
    """
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    for entry in no_proxy.split(","):
        text = entry.strip()
        if text.startswith("["):
            text = text[1:].partition("]")[0]
        try:
            if address in ipaddress.ip_network(text, strict=False):
                return True
        except ValueError:
            continue
    return False


def _proxy_fault(error: OSError | http.client.HTTPException) -> str:
    if isinstance(error, http.client.HTTPException):
        return "it gave no usable answer"
    detail = str(error) if error.errno is None else error.strerror
    return (
        f"the proxy refused or could not be reached ({detail or type(error).__name__}); add the "
        "coordinator to no_proxy if it is inside your network, or ask whoever runs the proxy"
    )


def _socket_fault(error: Exception, settings: TransportSettings) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {settings.connect_timeout_s:g} s; check address and firewall"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused; is `lada server run` running there?"
    if isinstance(error, socket.gaierror):
        return "the host name is unknown; check the address in the settings and the network"
    return f"connection failed ({getattr(error, 'strerror', None) or type(error).__name__})"


def _hung_up(where: str) -> HungUp:
    return HungUp(
        f"{where} closed the connection at the handshake: it is stopping, or does not accept our "
        "certificate; check that it was issued by this study's CA and has not ended"
    )


def _tls_fault(where: str, error: ssl.SSLError) -> TransportError:
    if isinstance(error, ssl.SSLCertVerificationError):
        return TransportError(
            f"{where} shows a certificate that this study's CA does not vouch for "
            f"({error.verify_message}); check that both sides use one study CA"
        )
    reason = (error.reason or "").replace("_", " ").lower()
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return _hung_up(where)
    if "alert" in reason and "protocol version" not in reason:
        return TransportError(
            f"{where} does not accept our certificate ({reason}); use the identity folder that "
            "this study's CA issued, and check its end date"
        )
    return TransportError(
        f"{where} does not speak TLS 1.3 as this study's coordinator does ({reason or 'no reason'})"
        "; check host and port"
    )
