"""Hashes of everything in a model folder that decides what the model says, taken once per file."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

from pydantic import ValidationError

from lada_secure.canonical import Json, canonical_json, sha256_hex
from lada_secure.errors import ParameterError
from lada_secure.models.identity import ModelIdentity
from lada_secure.storage.whole_files import read_if_there, write_atomically

_BLOCK_BYTES: Final = 2**20
_MAX_HEADER_BYTES: Final = 100 * 2**20
_MAX_CONFIG_BYTES: Final = 2**20
_WEIGHTS: Final = "model.safetensors"
_INDEX: Final = "model.safetensors.index.json"
# An adapter beside the weights would be loaded with them.
_CONFIGURATION: Final = ("config.json", _INDEX, "adapter_config.json")
TOKENIZER_FILES: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
)
TEMPLATE_FILES: Final = ("chat_template.jinja", "chat_template.json")
_CACHE_FORMAT: Final = "lada-file-hashes/1"
# A file that was written twice within one tick of the kernel's clock has the same times.
_SETTLED_S: Final = 2.0


class FileHashes:
    """SHA-256 of files, taken once per file: gigabytes of weights take seconds each time.

    A file counts as the same while device, inode, size and both times of change are: the time of a
    change of its inode is the kernel's, so a file that was written has another one. What changed
    within the last two seconds is hashed again at the next look.
    """

    def __init__(self, cache: Path | None, *, now: Callable[[], float] = time.time) -> None:
        """Args: cache: file that keeps hashes between runs, None for this run alone."""
        self._cache = cache
        self._now = now
        self._known: dict[str, str] = _read_cache(cache)

    @classmethod
    def reading(cls, cache: Path) -> FileHashes:
        """With the hashes that a file keeps, which stays as it is."""
        found = cls(None)
        found._known = _read_cache(cache)
        return found

    def sha256(self, path: Path) -> str:
        """Hash of a file.

        Raises: ParameterError: it cannot be read, or is written meanwhile. TransportError: the
            cache cannot be written.
        """
        try:
            with path.open("rb") as file:
                mark, changed_s = _mark(file)
                known = self._known.get(mark)
                if known is not None:
                    return known
                digest = hashlib.sha256()
                while block := file.read(_BLOCK_BYTES):
                    digest.update(block)
                if _mark(file)[0] != mark:
                    raise ParameterError(
                        f"{path} changed while it was read; try again once it is there as a whole"
                    )
        except OSError as error:
            raise ParameterError(f"{path}: cannot be read: {error.strerror}") from error
        found = digest.hexdigest()
        if abs(self._now() - changed_s) > _SETTLED_S:
            self._known[mark] = found
            self._keep()
        return found

    def of_files(self, folder: Path, names: Iterable[str]) -> str:
        """One hash over those of the named files that a folder has: their names and contents."""
        present = sorted(name for name in set(names) if (folder / name).is_file())
        return sha256_hex(canonical_json([[name, self.sha256(folder / name)] for name in present]))

    def _keep(self) -> None:
        if self._cache is not None:
            content: Json = {"format": _CACHE_FORMAT, "files": self._known}
            write_atomically(self._cache, canonical_json(content))


def _mark(file: BinaryIO) -> tuple[str, float]:
    """What changes when a file is written, and when it was written last."""
    found = os.fstat(file.fileno())
    marks = found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
    return ":".join(map(str, marks)), found.st_ctime


def _read_cache(cache: Path | None) -> dict[str, str]:
    """Hashes that an earlier run kept; none where the file is missing or of another kind."""
    raw = None if cache is None else read_if_there(cache)
    try:
        kept = json.loads(raw or b"{}")
        if kept.get("format") != _CACHE_FORMAT:
            return {}
        return {str(mark): str(digest) for mark, digest in kept["files"].items()}
    except (ValueError, AttributeError, KeyError):
        return {}


def identify(
    folder: Path, hashes: FileHashes, *, template: str, licence: str = "", revision: str = ""
) -> ModelIdentity:
    """The identity of a model folder, from its files alone; no weight is loaded.

    Args: template: how questions are put: the name of a style, or a hash of all that decides it.
        licence, revision: what the owner says of the model.
    Raises: ParameterError: no configuration, or files that cannot be read; names the folder.
    """
    config = _json(folder / "config.json")
    weights = _weight_files(folder)
    named = config.get("architectures")
    first = named[0] if isinstance(named, list) and named else config.get("model_type")
    try:
        return ModelIdentity(
            architecture=str(first or ""),
            parameters=sum(_parameters(folder / name) for name in weights),
            licence=licence,
            revision=revision,
            weights_sha256=hashes.of_files(folder, (*_CONFIGURATION, *weights)),
            tokenizer_sha256=hashes.of_files(folder, TOKENIZER_FILES),
            template_sha256=sha256_hex(
                canonical_json([template, hashes.of_files(folder, TEMPLATE_FILES)])
            ),
        )
    except ValidationError as error:
        fault = error.errors()[0]
        raise ParameterError(
            f"{folder}: {'.'.join(map(str, fault['loc']))}: {fault['msg']}; it is no model folder "
            "in the transformers format"
        ) from error


def _weight_files(folder: Path) -> tuple[str, ...]:
    """Names of the files of weights that are loaded, as transformers chooses them.

    Raises: ParameterError: there are none.
    """
    if (folder / _WEIGHTS).is_file():
        return (_WEIGHTS,)
    if (folder / _INDEX).is_file():
        shards = _json(folder / _INDEX).get("weight_map")
        if isinstance(shards, dict) and shards:
            return tuple(sorted({Path(str(name)).name for name in shards.values()}))
    raise ParameterError(
        f"{folder}: expected {_WEIGHTS}, or shards with {_INDEX}; copy the model's folder again"
    )


def _json(path: Path) -> Mapping[str, Any]:
    # An index names every tensor, and is larger than any configuration.
    most = _MAX_CONFIG_BYTES if path.name != _INDEX else _MAX_HEADER_BYTES
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(most))
    except OSError as error:
        raise ParameterError(
            f"{path}: cannot be read: {error.strerror}; name a folder with config.json, "
            f"{_WEIGHTS} and tokenizer.json"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ParameterError(f"{path}: no JSON, or cut short; copy it again") from error
    if not isinstance(found, dict):
        raise ParameterError(f"{path}: no JSON object; copy it again")
    return found


def _parameters(path: Path) -> int:
    """Numbers in a safetensors file, by its header."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, _MAX_HEADER_BYTES)))
        shapes = [one["shape"] for name, one in header.items() if name != "__metadata__"]
        return sum(math.prod(shape) for shape in shapes)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ParameterError(
            f"{path}: missing, no safetensors file, or cut short; copy it again"
        ) from error
