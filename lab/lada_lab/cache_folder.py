"""Where the laboratory keeps the model weights that it makes, and the option that says so."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, TypeAlias

import typer


def default_cache_dir(environment: Mapping[str, str]) -> Path:
    """$LADA_CACHE_DIR, else `lada-secure` in the user's cache folder (XDG)."""
    if named := environment.get("LADA_CACHE_DIR"):
        return Path(named)
    base = environment.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "lada-secure"


CacheDir: TypeAlias = Annotated[
    Path,
    typer.Option(
        "--cache-dir",
        help="Where model weights are kept. Default: $LADA_CACHE_DIR, else the user's cache.",
        default_factory=lambda: default_cache_dir(os.environ),
        show_default=False,
    ),
]
