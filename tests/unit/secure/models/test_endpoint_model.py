"""A served model answers as the same weights do in process; what a server lacks is named."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from completions_server import (
    MODEL,
    TEXTS,
    CompletionsServer,
    Reply,
    Speaks,
    byte_tokenizer,
    loaded,
    serving,
    with_start_token,
)
from completions_server import model_folder as another_folder

from lada_secure.data.forms import CLOZE, FormName, answer_form
from lada_secure.data.records import PoolSample
from lada_secure.errors import ParameterError, TransportError
from lada_secure.models.confidence import answer_pool
from lada_secure.models.endpoint.http import Endpoint
from lada_secure.models.endpoint.model import EndpointModel
from lada_secure.models.endpoint.opening import ServedFolder, open_endpoint
from lada_secure.models.evaluation import (
    choose,
    generate_texts,
    greedy_rationales,
    option_probabilities,
    rationale_log_probabilities,
)
from lada_secure.models.loading import LanguageModel
from lada_secure.models.rationales import Sampling, generate_rationales

SAMPLES = (
    PoolSample(
        sample_id="a",
        question="Which city is the capital of France?",
        choices=("Paris", "Rome", "Bern"),
        answer="Paris",
    ),
    PoolSample(
        sample_id="b",
        question="Which city is the capital of Italy?",
        choices=("Paris", "Rome", "Bern"),
        answer="Paris",
    ),
    PoolSample(sample_id="c", question="What is 2 + 3?", choices=(), answer="5"),
    PoolSample(sample_id="d", question="What is 4 + 4?", choices=(), answer="9"),
)

TWICE = Sampling(attempts=2)


@pytest.fixture(scope="module")
def local(served_folder: Path) -> LanguageModel:
    return loaded(served_folder)


@contextmanager
def opened(server: CompletionsServer, folder: Path, kept: Path) -> Iterator[EndpointModel]:
    """A served model that has passed the probe."""
    with serving(server):
        model = open_endpoint(
            Endpoint(url=server.url, model=MODEL),
            tokenizer=folder,
            kept=ServedFolder(folder=kept),
        )
        try:
            yield model
        finally:
            model.served.close()


@pytest.mark.parametrize("speaks", ["vllm", "echo_ids", "llama_cpp"])
def test_picks_paths_and_scores_are_those_of_the_same_weights_in_process(
    local: LanguageModel, served_folder: Path, tmp_path: Path, speaks: Speaks
) -> None:
    texts = speaks == "llama_cpp"
    if texts:
        served_folder = with_start_token(served_folder, tmp_path / "folder")
        local = loaded(served_folder)
    server = CompletionsServer(local, speaks=speaks, adds_bos=texts)
    with opened(server, served_folder, tmp_path / "kept") as served:
        here, there = (
            (
                choose(lm, SAMPLES[:2], batch_size=4).tolist(),
                greedy_rationales(lm, TEXTS, batch_size=4, max_new_tokens=8),
                generate_rationales(lm, SAMPLES, max_new_tokens=24, sampling=TWICE, batch_size=4),
                answer_pool(lm, SAMPLES, batch_size=4, max_new_tokens=24),
                rationale_log_probabilities(lm, TEXTS, TEXTS[::-1], batch_size=4),
            )
            for lm in (local, served)
        )
    # Which ones, a few steps of training leave to the machine's arithmetic.
    assert here[:3] == there[:3]
    # The gold answers of the others are wrong.
    assert {one.sample_id for one in there[2].paths} <= {"a", "c"}
    assert here[3].paths == there[3].paths
    np.testing.assert_allclose(here[3].confidence, there[3].confidence, atol=1e-4)
    np.testing.assert_allclose(here[4].total, there[4].total, atol=1e-3)
    assert here[4].tokens.tolist() == there[4].tokens.tolist()


@pytest.mark.parametrize(
    ("speaks", "name"), [("vllm", "listed"), ("vllm", "reasoned"), ("llama_cpp", "reasoned")]
)
def test_a_served_model_is_asked_in_the_form_of_the_study(
    local: LanguageModel, served_folder: Path, tmp_path: Path, speaks: Speaks, name: FormName
) -> None:
    texts = speaks == "llama_cpp"
    if texts:
        served_folder = with_start_token(served_folder, tmp_path / "folder")
        local = loaded(served_folder)
    form = answer_form(name)
    server = CompletionsServer(local, speaks=speaks, adds_bos=texts)
    begun = (
        [" It lies on the Seine.\nAnswer:", " The Tiber.\nAnswer:"] if name == "reasoned" else []
    )
    with opened(server, served_folder, tmp_path / "kept") as served:
        assert served.form is CLOZE
        asked = len(server.requests)
        here, there = (
            (
                generate_rationales(lm, SAMPLES, max_new_tokens=24, sampling=TWICE, batch_size=4),
                answer_pool(lm, SAMPLES, batch_size=4, max_new_tokens=24),
                option_probabilities(lm, SAMPLES[:2], batch_size=4, begun=begun),
            )
            for lm in (local.with_form(form), served.with_form(form))
        )
        prompts = [body["prompt"] for _, body in server.requests[asked:]]
    assert here[0] == there[0]
    assert here[1].paths == there[1].paths
    np.testing.assert_allclose(here[1].confidence, there[1].confidence, atol=1e-4)
    np.testing.assert_allclose(here[2], there[2], atol=1e-4)
    said = [one if texts else local.decode(one) for one in prompts]
    assert any("B. Rome" in one for one in said)
    assert any(one.endswith("Tiber.\nAnswer: C") for one in said) == (name == "reasoned")


def test_paths_are_drawn_from_the_share_of_tokens_that_was_asked_for(
    local: LanguageModel, served_folder: Path, tmp_path: Path
) -> None:
    server = CompletionsServer(local)
    drawn: dict[float, list[str]] = {}
    with opened(server, served_folder, tmp_path) as served:
        for top_p in (1e-6, 1.0):
            here, there = (
                generate_texts(
                    lm,
                    ["What is 2"],
                    batch_size=1,
                    max_new_tokens=12,
                    temperature=5.0,
                    top_p=top_p,
                    seed=3,
                )
                for lm in (local, served)
            )
            assert here == there
            assert server.requests[-1][1]["top_p"] == top_p
            drawn[top_p] = there
        greedy = greedy_rationales(served, ["What is 2"], batch_size=1, max_new_tokens=12)
    assert drawn[1e-6] == greedy != drawn[1.0]


def test_what_was_answered_is_not_asked_again_not_even_after_a_restart(
    local: LanguageModel, served_folder: Path, tmp_path: Path
) -> None:
    server = CompletionsServer(local)
    with opened(server, served_folder, tmp_path) as served:
        first = greedy_rationales(served, TEXTS, batch_size=4, max_new_tokens=8)
        scored = rationale_log_probabilities(served, TEXTS, TEXTS, batch_size=4)
        asked = len(server.requests)
        again = greedy_rationales(served, [*TEXTS, *TEXTS], batch_size=4, max_new_tokens=8)
        assert again == [*first, *first]
        assert len(server.requests) == asked
    restarted = CompletionsServer(local)
    with opened(restarted, served_folder, tmp_path) as served:
        probed = len(restarted.requests)
        assert greedy_rationales(served, TEXTS, batch_size=4, max_new_tokens=8) == first
        kept = rationale_log_probabilities(served, TEXTS, TEXTS, batch_size=4)
        assert kept.total.tolist() == scored.total.tolist()
        assert len(restarted.requests) == probed
        greedy_rationales(served, TEXTS[:1], batch_size=4, max_new_tokens=9)
        assert len(restarted.requests) == probed + 1


def test_as_many_requests_at_a_time_as_allowed_and_no_more(
    local: LanguageModel, served_folder: Path, tmp_path: Path
) -> None:
    here, most, lock = 0, 0, threading.Lock()
    meet = threading.Barrier(3, timeout=20)

    def count(path: str, _body: dict[str, Any]) -> Reply | None:
        nonlocal here, most
        with lock:
            here, most = here + 1, max(most, here + 1)
        if path == "/v1/completions":
            meet.wait()
        with lock:
            here -= 1
        return None

    server = CompletionsServer(local)
    with opened(server, served_folder, tmp_path) as served:
        http = served.served.http
        http.endpoint = replace(http.endpoint, concurrency=3)
        server.fault = count
        greedy_rationales(served, TEXTS, batch_size=1, max_new_tokens=2)
    assert most == 3
    assert len(TEXTS) % 3 == 0


def test_a_server_that_is_killed_and_comes_back_is_waited_for(
    local: LanguageModel, served_folder: Path, tmp_path: Path
) -> None:
    expected = greedy_rationales(local, TEXTS, batch_size=4, max_new_tokens=8)
    kept = ServedFolder(folder=tmp_path)
    first = CompletionsServer(local)
    with serving(first):
        served = open_endpoint(
            Endpoint(url=first.url, model=MODEL, concurrency=2, patience_s=60.0),
            tokenizer=served_folder,
            kept=kept,
        )
        greedy_rationales(served, TEXTS[:3], batch_size=4, max_new_tokens=8)
    port = int(first.url.rsplit(":", 1)[1].split("/")[0])
    found: list[list[str]] = []
    thread = threading.Thread(
        target=lambda: found.append(
            greedy_rationales(served, TEXTS, batch_size=4, max_new_tokens=8)
        )
    )
    thread.start()
    thread.join(timeout=1.0)
    assert thread.is_alive()
    with serving(CompletionsServer(local), port=port):
        thread.join(timeout=60.0)
    assert found == [expected]
    served.served.close()


def test_what_was_answered_before_the_server_failed_for_good_is_kept(
    local: LanguageModel, served_folder: Path, tmp_path: Path
) -> None:
    server = CompletionsServer(local)
    with opened(server, served_folder, tmp_path) as served:
        http = served.served.http
        http.endpoint = replace(http.endpoint, concurrency=1, patience_s=0.1)
        asked = len(server.requests)
        server.fault = lambda _path, _body: (
            Reply(b"", 503) if len(server.requests) > asked + 4 else None
        )
        with pytest.raises(TransportError, match="start the coordinator again"):
            greedy_rationales(served, TEXTS, batch_size=1, max_new_tokens=8)
        server.fault = None
        asked = len(server.requests)
        greedy_rationales(served, TEXTS, batch_size=1, max_new_tokens=8)
        assert len(server.requests) == asked + len(TEXTS) - 4


def _prompt_numbers(
    change: Callable[[float], float | None],
) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def changed(reply: dict[str, Any]) -> dict[str, Any]:
        for place in reply["choices"][0].get("prompt_logprobs") or ():
            for one in (place or {}).values():
                one["logprob"] = change(one["logprob"])
        return reply

    return changed


def _without(*keys: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def changed(reply: dict[str, Any]) -> dict[str, Any]:
        for key in keys:
            reply["choices"][0].pop(key, None)
        return reply

    return changed


def _other_ids(reply: dict[str, Any]) -> dict[str, Any]:
    choice = reply["choices"][0]
    if choice.get("prompt_token_ids"):
        choice["prompt_token_ids"] = choice["prompt_token_ids"][::-1]
    return reply


def _random(reply: dict[str, Any]) -> dict[str, Any]:
    _random.calls += 1  # type: ignore[attr-defined]
    return _prompt_numbers(lambda value: value - 0.002 * _random.calls)(reply)  # type: ignore[attr-defined]


_random.calls = 0  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        pytest.param(
            {"change": _prompt_numbers(lambda _: 0.0)}, "all that it gives are zeros", id="zeros"
        ),
        pytest.param(
            {"change": _without("prompt_logprobs", "logprobs")},
            "cannot give prompt log-probabilities.*no prompt_logprobs.*no logprobs"
            ".*vLLM has it.*Ollama have not",
            id="no log-probabilities of a prompt",
        ),
        pytest.param(
            {"speaks": "llama_cpp", "change": _without("logprobs")},
            "422.*no logprobs.*vLLM has it",
            id="texts alone and no log-probabilities",
        ),
        pytest.param(
            {"speaks": "llama_cpp"},
            "of the right tokens.*start token",
            id="log-probabilities of the next place",
        ),
        pytest.param({"change": _other_ids}, "read other tokens than sent", id="other ids echoed"),
        pytest.param({"change": _random}, "asked twice differs", id="numbers that change"),
        pytest.param(
            {"change": _prompt_numbers(lambda value: value * 1.5)},
            "when it is read and when it is written",
            id="numbers of another temperature",
        ),
    ],
)
def test_a_server_that_lacks_an_ability_is_refused_at_the_start(
    local: LanguageModel,
    served_folder: Path,
    tmp_path: Path,
    changes: dict[str, Any],
    words: str,
) -> None:
    with (
        pytest.raises(ParameterError, match=f"(?s){words}"),
        opened(CompletionsServer(local, **changes), served_folder, tmp_path),
    ):
        pass
    assert not (tmp_path / "fingerprint.json").exists()


def test_another_model_is_named(local: LanguageModel, served_folder: Path, tmp_path: Path) -> None:
    with serving(CompletionsServer(local)) as server:
        with pytest.raises(ParameterError, match=r"serves served-model, and llm.model is 'other'"):
            open_endpoint(
                Endpoint(url=server.url, model="other"),
                tokenizer=served_folder,
                kept=ServedFolder(folder=tmp_path),
            )
        server.change = lambda reply: {**reply, "model": "other"}
        with pytest.raises(ParameterError, match="'other' answered"):
            open_endpoint(
                Endpoint(url=server.url, model=MODEL),
                tokenizer=served_folder,
                kept=ServedFolder(folder=tmp_path),
            )


def test_another_model_under_the_same_name_after_a_restart_is_refused(
    local: LanguageModel, served_folder: Path, tmp_path: Path
) -> None:
    with opened(CompletionsServer(local), served_folder, tmp_path / "kept"):
        pass
    other = loaded(another_folder(tmp_path / "other", seed=5))
    with (
        pytest.raises(ParameterError, match="not the model that this study began with"),
        opened(CompletionsServer(other), served_folder, tmp_path / "kept"),
    ):
        pass
    (tmp_path / "kept" / "fingerprint.json").write_bytes(b"{}")
    with (
        pytest.raises(ParameterError, match=r"fingerprint.*damaged"),
        opened(CompletionsServer(local), served_folder, tmp_path / "kept"),
    ):
        pass


def test_another_tokenizer_than_the_servers_is_refused(
    local: LanguageModel, served_folder: Path, tmp_path: Path
) -> None:
    other = tmp_path / "tokenizer"
    tokenizer = byte_tokenizer(("another text", "of other merges"))
    tokenizer.save_pretrained(other)
    with (
        pytest.raises(ParameterError, match=r"tokenizer is not the one in llm\.tokenizer"),
        opened(CompletionsServer(local), other, tmp_path / "kept"),
    ):
        pass
    with (
        pytest.raises(ParameterError, match="no readable tokenizer"),
        opened(CompletionsServer(local), tmp_path / "nothing", tmp_path / "kept"),
    ):
        pass


def test_a_prompt_of_texts_is_made_of_tokens_that_survive_the_way(local: LanguageModel) -> None:
    from lada_secure.models.endpoint.dialects import EchoText

    dialect = EchoText(tokenizer=local.tokenizer)
    plain = local.tokens_of("the capital of Italy")
    assert dialect.settled(plain, 3) == (plain, 3)
    # Two halves that the tokenizer would have merged, and a text that spells a control token.
    apart = [*local.tokens_of("the cap"), *local.tokens_of("ital of Italy")]
    row, target = dialect.settled(apart, len(local.tokens_of("ital of Italy")))
    assert list(row) == local.tokens_of("the capital of Italy")
    assert 0 < target < len(row)
    spelled = local.tokens_of("ends with <end>")
    assert local.end_token not in spelled
    assert local.end_token in dialect.settled(spelled, 1)[0]
