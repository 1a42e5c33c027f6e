"""Requests to an inference server, repeated until they are answered or patience ends.

What comes back are bytes of a stranger: a body is measured while it is read and never unpacked, a
redirect is not followed, and no proxy, no `.netrc` and no cookie is used. Every fault is one of
two: what may pass is tried again (`Passing`), what will not is refused at once (`ParameterError`).
"""

from __future__ import annotations

import codecs
import ipaddress
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NoReturn
from urllib.parse import SplitResult, urlsplit

import httpx2

from lada_secure.canonical import Json, canonical_json
from lada_secure.errors import ParameterError, TransportError
from lada_secure.ranges import above_zero, at_least

LOG = logging.getLogger(__name__)

_MAX_KEY_BYTES: Final = 4096
_FIRST_WAIT_S: Final = 0.5
_LONGEST_WAIT_S: Final = 30.0
_QUOTED: Final = 200
# Of a server that is busy, starting or ill; a fault of ours has other numbers.
_PASSING_STATUS: Final = frozenset({408, 425, 429, 500, 502, 503, 504})


class Passing(TransportError):
    """A fault that may be gone at the next try."""

    def __init__(self, message: str, *, wait_s: float = 0.0) -> None:
        super().__init__(message)
        self.wait_s = wait_s


class NotThere(ParameterError):
    """The server has no such page, or no such model."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What a server knows its callers by. Not printable and not picklable."""

    value: str = field(repr=False)

    def __reduce__(self) -> NoReturn:
        raise TypeError("an API key is not pickled")


def read_key(path: Path) -> ApiKey:
    """The key in a file; white space around it does not count.

    Raises: ParameterError: unreadable, empty, too long, or not printable ASCII.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_KEY_BYTES + 1)
    except OSError as error:
        raise ParameterError(f"key_file {path}: {error.strerror}") from error
    text = raw.removeprefix(codecs.BOM_UTF8).decode("ascii", "replace").strip()
    if not 0 < len(raw) <= _MAX_KEY_BYTES or not text.isascii() or not text.isprintable():
        raise ParameterError(
            f"key_file {path}: expected a key of printable ASCII on one line, at most "
            f"{_MAX_KEY_BYTES} bytes"
        )
    if not text:
        raise ParameterError(f"key_file {path}: the file is empty")
    return ApiKey(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where a server is, what it serves, and how it is asked.

    url: of its API, as `https://host/v1`. model: the served model's name. key: None where the
    server asks for none. concurrency: requests at a time. timeout_s: of one try.
    patience_s: how long a request is tried again before the study stops.
    """

    url: str
    model: str
    key: ApiKey | None = None
    concurrency: int = 8
    timeout_s: float = 120.0
    patience_s: float = 900.0

    def __post_init__(self) -> None:
        at_least(1, concurrency=self.concurrency)
        above_zero(timeout_s=self.timeout_s, patience_s=self.patience_s)
        parts = _split(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ParameterError(
                f"llm.endpoint: expected a URL as https://host/v1, got {self.url!r}"
            )
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ParameterError(
                "llm.endpoint: expected a URL without user, password, query and fragment; a key "
                "belongs into key_file"
            )
        if self.key is not None and parts.scheme == "http" and not _is_here(parts.hostname):
            # Whoever is on the way could read the key and use it.
            raise ParameterError(
                f"llm.endpoint: {self.url} has no TLS, and a key is sent along; use https, a "
                "tunnel to this machine, or no key_file"
            )

    @property
    def root(self) -> str:
        """The URL without a slash at its end."""
        return self.url.rstrip("/")


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise ParameterError(f"llm.endpoint: {url!r} is not a URL: {error}") from error
    return parts


def _is_here(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class HttpClient:
    """Requests to one endpoint; many threads may share it."""

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.endpoint = endpoint
        self._clock = clock
        headers = {"Accept": "application/json, text/plain", "Accept-Encoding": "identity"}
        if endpoint.key is not None:
            headers["Authorization"] = f"Bearer {endpoint.key.value}"
        self._client = httpx2.Client(
            headers=headers,
            timeout=httpx2.Timeout(endpoint.timeout_s, connect=min(10.0, endpoint.timeout_s)),
            limits=httpx2.Limits(max_connections=endpoint.concurrency + 1),
            follow_redirects=False,
            trust_env=False,
        )

    def close(self) -> None:
        """Let go of the connections."""
        self._client.close()

    def get(
        self, path: str, *, max_bytes: int, patience_s: float, read: Callable[[bytes], None]
    ) -> bytes:
        """Body of `GET {endpoint}{path}`; see `post`."""
        return self._patiently(
            "GET",
            path,
            b"",
            max_bytes=max_bytes,
            patience_s=patience_s,
            read=read,
            stop=threading.Event(),
        )

    def post(
        self,
        path: str,
        body: Json,
        *,
        max_bytes: int,
        patience_s: float,
        read: Callable[[bytes], None] = lambda _: None,
        stop: threading.Event | None = None,
    ) -> bytes:
        """Body of the answer to `POST {endpoint}{path}`.

        Args: read: looks at the body and raises `Passing` where it is unusable, which counts as a
            failed try. stop: ends the waiting between tries.
        Raises: TransportError: no usable answer within `patience_s`. ParameterError: the server
            refuses the request, redirects it, or answers more than `max_bytes`. NotThere: 404.
        """
        return self._patiently(
            "POST",
            path,
            canonical_json(body),
            max_bytes=max_bytes,
            patience_s=patience_s,
            read=read,
            stop=stop or threading.Event(),
        )

    def _patiently(
        self,
        method: str,
        path: str,
        content: bytes,
        *,
        max_bytes: int,
        patience_s: float,
        stop: threading.Event,
        read: Callable[[bytes], None] = lambda _: None,
    ) -> bytes:
        url = self.endpoint.root + path
        started_s = self._clock()
        tries, wait_s = 0, _FIRST_WAIT_S
        while True:
            tries += 1
            try:
                raw = self._once(method, url, content, max_bytes=max_bytes)
                read(raw)
                return raw
            except Passing as fault:
                pause_s = max(wait_s, fault.wait_s)
                spent_s = self._clock() - started_s
                if spent_s + pause_s > patience_s or stop.is_set():
                    raise TransportError(
                        f"{url}: {fault}; gave up after {tries} tries in {spent_s:.0f} s. What "
                        "the LLM has said so far is kept: start the coordinator again when the "
                        "server answers"
                    ) from fault
                LOG.warning("%s: %s; trying again in %.1f s", url, fault, pause_s)
            stop.wait(pause_s)
            wait_s = min(2.0 * wait_s, _LONGEST_WAIT_S)

    def _once(self, method: str, url: str, content: bytes, *, max_bytes: int) -> bytes:
        headers = {"Content-Type": "application/json"} if content else {}
        ends_s = self._clock() + self.endpoint.timeout_s
        try:
            with self._client.stream(method, url, content=content, headers=headers) as answer:
                raw = self._body(answer, max_bytes=max_bytes, ends_s=ends_s)
                return _checked(answer, raw)
        except httpx2.TimeoutException as error:
            raise Passing(f"no answer within {self.endpoint.timeout_s:g} s") from error
        except httpx2.TransportError as error:
            # Nobody listens, the line broke, or what came is not HTTP.
            raise Passing(f"{type(error).__name__}: {_quoted(str(error).encode())}") from error
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise ParameterError(f"{url}: {_quoted(str(error).encode())}") from error

    def _body(self, answer: httpx2.Response, *, max_bytes: int, ends_s: float) -> bytes:
        if answer.headers.get("content-encoding", "identity").lower() != "identity":
            # Unpacking could make any size of a few bytes.
            raise ParameterError(f"{answer.url}: the body is compressed, though none was asked for")
        parts: list[bytes] = []
        size = 0
        for part in answer.iter_raw():
            parts.append(part)
            size += len(part)
            if size > max_bytes:
                raise ParameterError(f"{answer.url}: the body is longer than {max_bytes} bytes")
            if self._clock() > ends_s:
                raise Passing(f"the body did not end within {self.endpoint.timeout_s:g} s")
        return b"".join(parts)


def _checked(answer: httpx2.Response, raw: bytes) -> bytes:
    """The body of a good answer. Raises: Passing, ParameterError, NotThere: any other."""
    status = answer.status_code
    if status == 200:
        return raw
    said = f"status {status}: {_quoted(raw)}"
    if status in _PASSING_STATUS:
        raise Passing(said, wait_s=_retry_after_s(answer))
    if status in (401, 403):
        raise ParameterError(f"{answer.url}: {said}; is key_file the key of this server?")
    if status == 404:
        raise NotThere(f"{answer.url}: {said}")
    if 300 <= status < 400:
        raise ParameterError(
            f"{answer.url}: status {status} sends the caller elsewhere, which is not followed; "
            "name the final URL as llm.endpoint"
        )
    raise ParameterError(f"{answer.url}: {said}")


def _retry_after_s(answer: httpx2.Response) -> float:
    try:
        return max(0.0, min(float(answer.headers.get("retry-after", "0")), _LONGEST_WAIT_S))
    except ValueError:
        return 0.0


def _quoted(raw: bytes) -> str:
    """The beginning of what a stranger said, printable and short."""
    text = raw[: 4 * _QUOTED].decode("utf-8", "replace")
    shown = "".join(one if one.isprintable() else " " for one in text)
    return repr(" ".join(shown.split())[:_QUOTED])
