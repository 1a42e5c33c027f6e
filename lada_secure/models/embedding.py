"""Text embeddings that place private records and public samples among the same clusters.

Every party computes embeddings for itself, so an embedder must give the same vectors everywhere:
no weights that differ, no download, no random state.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from lada_secure.arrays import Float32Array
from lada_secure.errors import ParameterError

HASHED_NGRAMS = "hashed-ngrams"
MINILM = "minilm"
EMBEDDERS = (HASHED_NGRAMS, MINILM)

_DIMENSIONS = 128
_LONGEST_GRAM = 3
_DIGITS = re.compile(r"\d+")
_SPACES = re.compile(r"\s+")


class Embedder(Protocol):
    """Turns texts into unit vectors; near vectors mean near topics."""

    def embed(self, texts: Sequence[str]) -> Float32Array:
        """Embed texts.

        Args: texts: n strings; empty ones are allowed.
        Returns: (n, e) float32, every row of L2 norm 1 up to rounding.
        """
        ...


class HashedNgramEmbedder:
    """Signed feature hashing of character n-grams (Weinberger et al., ICML 2009); no weights.

    For made-up languages, where a pretrained encoder knows nothing; case counts, because symbols
    may differ by it. Every run of digits counts as one mark, because a topic does not depend on the
    numbers in a question. Counts enter as their square roots, so that one repeated letter does not
    drown the rest.
    """

    def embed(self, texts: Sequence[str]) -> Float32Array:
        """Embed texts; see `Embedder.embed`."""
        vectors = np.zeros((len(texts), _DIMENSIONS), dtype=np.float64)
        for row, text in enumerate(texts):
            for gram, count in _grams(text).items():
                # CRC-32, not hash(): Python salts hash() per process, and all parties must agree.
                code = zlib.crc32(gram.encode("utf-8", "surrogatepass"))
                sign = 1.0 if code & 1 else -1.0
                vectors[row, (code >> 1) % _DIMENSIONS] += sign * float(np.sqrt(count))
        return _unit_rows(vectors)


def _grams(text: str) -> Counter[str]:
    plain = _SPACES.sub(" ", _DIGITS.sub("0", text)).strip()
    # Marks for start and end give even an empty text one n-gram, hence a direction.
    marked = f"\x02{plain}\x03"
    return Counter(
        marked[start : start + length]
        for length in range(1, _LONGEST_GRAM + 1)
        for start in range(len(marked) - length + 1)
    )


def embedder(reference: str) -> Embedder:
    """Make the embedder that a study plan names.

    Args: reference: "hashed-ngrams" or "minilm".
    Raises: ParameterError: unknown name, or the weights of "minilm" are not installed.
    """
    check_embedder(reference)
    if reference == HASHED_NGRAMS:
        return HashedNgramEmbedder()
    # Imported late: it pulls in torch and transformers, which hashed n-grams do without.
    from lada_secure.models.minilm import MiniLmEmbedder

    return MiniLmEmbedder()


def check_embedder(reference: str) -> None:
    """Raises: ParameterError: not the name of an embedder. Nothing is loaded."""
    if reference not in EMBEDDERS:
        raise ParameterError(
            f"embedder: expected {HASHED_NGRAMS!r} or {MINILM!r}, got {reference!r}; "
            "correct the study plan"
        )


def _unit_rows(vectors: npt.NDArray[np.float64]) -> Float32Array:
    """Scale rows to norm 1; a row of zeros (signs that cancel) becomes the first axis."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    empty = norms[:, 0] == 0.0
    scaled = vectors / np.where(norms == 0.0, 1.0, norms)
    scaled[empty, 0] = 1.0
    return scaled.astype(np.float32)
