"""Whether weights are those that a configuration describes, all there, and numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open

from lada_secure.errors import ParameterError
from lada_secure.models.folder import shown_names, weight_files

_AT_ONCE: Final = 2**22


def check_complete(folder: Path, told: Mapping[str, Any]) -> None:
    """Refuse weights that the library would have made up or left out.

    It fills what is missing at random, and drops what it has no place for.

    Raises: ParameterError: names the tensors.
    """
    reshaped = {one if isinstance(one, str) else one[0] for one in told["mismatched_keys"]}
    wrong = reshaped | set(told["missing_keys"])
    extra = set(told["unexpected_keys"]) - reshaped
    if wrong or told["error_msgs"]:
        also = f", and {len(extra)} are of no use to it" if extra else ""
        raise ParameterError(
            f"{folder}: {len(wrong)} tensors are missing or have another shape than the model's "
            f"configuration says: {shown_names(list(wrong))}{also}; copy the whole folder again"
        )
    if extra:
        raise ParameterError(
            f"{folder}: {len(extra)} tensors have no place in the model that its configuration "
            f"describes: {shown_names(list(extra))}; copy the model's own config.json"
        )


def check_finite(folder: Path, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Raises: ParameterError: a tensor holds NaN or infinity; names all that do."""
    broken = [name for name, one in tensors if not is_finite(one)]
    if broken:
        raise ParameterError(
            f"{folder}: {len(broken)} tensors hold NaN or infinity: {shown_names(broken)}; the "
            "weights are broken, copy them again"
        )


def is_finite(values: torch.Tensor) -> bool:
    """In parts: what is tested takes twice its own memory, and embeddings are large."""
    parts = torch.split(values.detach().reshape(-1), _AT_ONCE)
    return all(bool(part.isfinite().all()) for part in parts)


def stored_tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a folder that `check_folder` has passed, as they are stored, one at a time."""
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 (no mapping)
                yield name, opened.get_tensor(name)
