"""Folders of models on disk: made once, complete or not at all.

Whoever changes how a model is made empties the cache, or gives the model another name.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from lada_secure.errors import ParameterError


def cached_folder(cache_dir: Path, name: str, build: Callable[[Path], None]) -> Path:
    """Make `cache_dir`/`name` with `build`, unless it is there; readers only ever see it complete.

    `build` fills a temporary folder beside it, which is renamed at the end. Two processes that
    build at once both succeed: the second one's copy is dropped.

    Raises: ParameterError: the cache folder cannot be written.
    """
    target = cache_dir / name
    if target.is_dir():
        return target
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=cache_dir))
    except OSError as error:
        raise ParameterError(f"{cache_dir}: cannot write this cache: {error.strerror}") from error
    try:
        build(temporary)
        temporary.chmod(0o755)
        try:
            os.rename(temporary, target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target
