"""Requests to a server that answers late, wrongly, too much, or not at all."""

from __future__ import annotations

import pickle
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from completions_server import CompletionsServer, Fault, Reply, serving

from lada_secure.errors import LadaError, ParameterError, TransportError
from lada_secure.models.endpoint.http import ApiKey, Endpoint, HttpClient, NotThere, read_key
from lada_secure.models.endpoint.replies import Completion, ModelList, parse_reply

HTML = b"<!doctype html><title>Sign in</title>"


@contextmanager
def client_of(fault: Fault, **options: Any) -> Iterator[tuple[HttpClient, CompletionsServer]]:
    """A client of a server that only does what `fault` says."""
    server = CompletionsServer(None, fault=fault)  # type: ignore[arg-type]
    with serving(server):
        client = HttpClient(Endpoint(url=server.url, model="m", **options))
        try:
            yield client, server
        finally:
            client.close()


def posted(client: HttpClient, *, patience_s: float = 0.1, max_bytes: int = 1000) -> bytes:
    return client.post(
        "/completions",
        {"model": "m"},
        max_bytes=max_bytes,
        patience_s=patience_s,
        read=lambda raw: parse_reply(raw, ModelList) and None,
    )


GOOD = Reply(b'{"data": []}')


@pytest.mark.parametrize(
    ("reply", "refusal", "words"),
    [
        pytest.param(Reply(HTML), TransportError, "HTML", id="a login page with status 200"),
        pytest.param(
            Reply(b"slow down", 429),
            TransportError,
            "status 429.*slow down",
            id="too many requests",
        ),
        pytest.param(Reply(b"", 503), TransportError, "status 503", id="a server that starts"),
        pytest.param(Reply(b'{"data": [{"id'), TransportError, "not a modellist", id="half a line"),
        pytest.param(
            Reply(b'{"data": []}', whole=False), TransportError, "gave up", id="a line that broke"
        ),
        pytest.param(Reply(b"\xff\xfe"), TransportError, "not a modellist", id="no text at all"),
        pytest.param(Reply(b"[" * 900), TransportError, "not a modellist", id="deep nesting"),
        pytest.param(
            Reply(b'{"data": [{"id": 7}]}'), TransportError, "data.0.id", id="a wrong type"
        ),
        pytest.param(Reply(b" " * 2000), ParameterError, "longer than 1000", id="too many bytes"),
        pytest.param(
            Reply(b"x", 200, {"Content-Encoding": "gzip"}),
            ParameterError,
            "compressed",
            id="a body to unpack",
        ),
        pytest.param(Reply(b"who?", 401), ParameterError, "key_file", id="another key"),
        pytest.param(Reply(b"no", 404), NotThere, "status 404", id="no such page"),
        pytest.param(Reply(b"bad", 400), ParameterError, "status 400.*bad", id="a refusal"),
        pytest.param(
            Reply(b"", 302, {"Location": "http://127.0.0.1:1/"}),
            ParameterError,
            "elsewhere",
            id="a redirect",
        ),
    ],
)
def test_what_a_server_may_answer_is_named(
    reply: Reply, refusal: type[LadaError], words: str
) -> None:
    with (
        client_of(lambda _path, _body: reply) as (client, _),
        pytest.raises(refusal, match=f"(?s){words}"),
    ):
        posted(client)


def test_what_passes_is_waited_for_and_the_caller_sees_nothing() -> None:
    replies = [Reply(b"", 503), Reply(HTML), Reply(b'{"da'), GOOD]
    with client_of(lambda _path, _body: replies.pop(0)) as (client, server):
        assert posted(client, patience_s=30.0) == GOOD.body
        assert len(server.requests) == 4


def test_a_server_that_says_when_to_come_back_is_obeyed() -> None:
    at: list[float] = []

    def fault(_path: str, _body: dict[str, Any]) -> Reply:
        at.append(time.monotonic())
        return Reply(b"", 429, {"Retry-After": "1"}) if len(at) == 1 else GOOD

    with client_of(fault) as (client, _):
        posted(client, patience_s=30.0)
    assert at[1] - at[0] >= 1.0


def test_a_refusal_is_not_tried_again() -> None:
    with client_of(lambda _path, _body: Reply(b"bad", 400)) as (client, server):
        with pytest.raises(ParameterError):
            posted(client, patience_s=30.0)
        assert len(server.requests) == 1


def test_a_server_that_answers_slowly_is_named() -> None:
    def fault(_path: str, _body: dict[str, Any]) -> Reply:
        time.sleep(0.5)
        return GOOD

    with (
        client_of(fault, timeout_s=0.1) as (client, _),
        pytest.raises(TransportError, match=r"no answer within 0\.1 s"),
    ):
        posted(client)


def test_a_server_that_drips_is_cut_off() -> None:
    """Each byte in time, the whole never."""
    listener = socket.create_server(("127.0.0.1", 0))

    def drip() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
            try:
                for _ in range(100):
                    connection.sendall(b" ")
                    time.sleep(0.05)
            except OSError:
                return

    thread = threading.Thread(target=drip, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    client = HttpClient(Endpoint(url=url, model="m", timeout_s=0.3))
    with pytest.raises(TransportError, match=r"did not end within 0\.3 s"):
        posted(client)
    client.close()
    listener.close()
    thread.join()


def test_a_server_that_is_not_there_is_named_with_its_url() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    client = HttpClient(Endpoint(url=url, model="m"))
    with pytest.raises(TransportError, match=f"{url}.*ConnectError.*gave up after 1 tries"):
        posted(client)
    client.close()


def test_the_key_is_sent_and_never_shown(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("sk-very-secret\n")
    key = read_key(file)
    with pytest.raises(TypeError, match="pickled"):
        pickle.dumps(key)
    server = CompletionsServer(None, key="sk-very-secret", max_model_len=7)  # type: ignore[arg-type]
    with serving(server):
        endpoint = Endpoint(url=server.url, model="m", key=key)
        assert "secret" not in f"{key} {key!r} {endpoint!r}"
        client = HttpClient(endpoint)
        raw = client.get("/models", max_bytes=1000, patience_s=0.1, read=lambda _: None)
        client.close()
        assert parse_reply(raw, ModelList).data[0].max_model_len == 7
        other = HttpClient(Endpoint(url=server.url, model="m", key=ApiKey("sk-another")))
        with pytest.raises(ParameterError, match="key_file") as refused:
            other.get("/models", max_bytes=1000, patience_s=0.1, read=lambda _: None)
        other.close()
        assert "another" not in str(refused.value)


@pytest.mark.parametrize("content", ["", "  \n", "two\nlines", "schlüssel", "x" * 5000])
def test_a_file_that_holds_no_key_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "key"
    file.write_text(content)
    with pytest.raises(ParameterError, match="key_file"):
        read_key(file)
    with pytest.raises(ParameterError, match="No such file"):
        read_key(tmp_path / "none")


@pytest.mark.parametrize(
    "url",
    [
        "ftp://host/v1",
        "host:8000/v1",
        "http://",
        "http://host:x/v1",
        "http://user:password@host/v1",
        "http://host/v1?key=1",
        "http://[::1/v1",
    ],
)
def test_what_is_no_url_of_an_api_is_refused(url: str) -> None:
    with pytest.raises(ParameterError, match=r"llm\.endpoint"):
        Endpoint(url=url, model="m")


def test_a_key_goes_over_tls_or_stays_on_this_machine() -> None:
    key = ApiKey("sk-1")
    for url in ("https://host/v1", "http://127.0.0.1:8000/v1", "http://localhost/v1"):
        Endpoint(url=url, model="m", key=key)
    Endpoint(url="http://gpu-node:8000/v1", model="m")
    with pytest.raises(ParameterError, match="has no TLS"):
        Endpoint(url="http://gpu-node:8000/v1", model="m", key=key)


@pytest.mark.parametrize(
    "choice",
    [
        '"text": 1',
        '"text": "a", "logprobs": {"tokens": ["a"], "token_logprobs": ["-1"]}',
        '"text": "a", "logprobs": {"tokens": ["a"], "token_logprobs": [0.5]}',
        '"text": "a", "logprobs": {"tokens": ["a"], "token_logprobs": [NaN]}',
        '"text": "a", "prompt_logprobs": [{"1": {"logprob": -Infinity}}]',
        '"text": "a", "token_ids": [-1]',
        '"text": "a", "token_ids": [1.5]',
    ],
)
def test_a_completion_of_another_form_is_no_completion(choice: str) -> None:
    raw = f'{{"model": "m", "choices": [{{{choice}}}]}}'.encode()
    with pytest.raises(TransportError, match=r"choices\.0|not a completion"):
        parse_reply(raw, Completion)


@pytest.mark.parametrize("choices", ["[]", '[{"text": "a"}, {"text": "b"}]', "null"])
def test_one_prompt_has_one_completion(choices: str) -> None:
    with pytest.raises(TransportError, match="choices"):
        parse_reply(f'{{"model": "m", "choices": {choices}}}'.encode(), Completion)
