"""What a model folder must be, found in its files alone, before any weight is read.

A folder that is not as it should be ends in a traceback of a foreign library, or worse: in a model
that is not the one its maker meant. Every fault is named here, all of them at once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias

from lada_secure.errors import ParameterError

WEIGHTS: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
_MAX_HEADER_BYTES: Final = 100 * 2**20
_SHOWN: Final = 5
# What `git clone` leaves in place of a large file where Git LFS is not installed.
_LFS_POINTER: Final = b"version https://git-lfs"
_PICKLED: Final = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
# Plain numbers; anything else is a packed form that only its own kernels can read.
_PLAIN_TYPES: Final = {"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"}
_ITEM_BYTES: Final = {
    "F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "I8": 1, "U8": 1,
    "BOOL": 1,
}  # fmt: skip

_Json: TypeAlias = Mapping[str, Any]


class _Unreadable(Exception):
    """Ends the reading of one file; says what is wrong with it."""


def check_folder(folder: Path) -> None:
    """Refuse a folder that cannot be loaded as it is meant, whatever its weights say.

    Raises: ParameterError: every fault: no configuration, code of its own (`auto_map`), pickled,
        quantised or GGUF weights, missing or cut shards, no tokenizer.json.
    """
    faults = list(_faults(folder))
    if faults:
        raise ParameterError(
            f"{folder}: {'; '.join(faults)}. Copy the folder again, whole; remove it where it is a "
            "cache, it will be made again"
        )


def shown_names(names: Iterator[str] | list[str]) -> str:
    """The first few names, and how many more there are."""
    every = sorted(names)
    more = f" and {len(every) - _SHOWN} more" if len(every) > _SHOWN else ""
    return f"{', '.join(every[:_SHOWN])}{more}"


def read_json(path: Path) -> _Json:
    """A small JSON file of a model folder; empty where there is none.

    Raises: ParameterError: unreadable, or no JSON object.
    """
    try:
        return _json(path) if path.is_file() else {}
    except _Unreadable as error:
        raise ParameterError(f"{path.parent}: {error}") from error


def weight_files(folder: Path) -> list[Path]:
    """The files of weights of a folder that `check_folder` has passed."""
    if not (folder / INDEX).is_file():
        return [folder / WEIGHTS]
    return [folder / one for one in sorted(set(_json(folder / INDEX)["weight_map"].values()))]


def stored_bytes(folder: Path) -> dict[str, int]:
    """Bytes of the tensors of a folder that `check_folder` has passed, by their type ("F32")."""
    found: dict[str, int] = {}
    for file in weight_files(folder):
        for one in _header(file).values():
            first, last = one["data_offsets"]
            found[one["dtype"]] = found.get(one["dtype"], 0) + last - first
    return found


def _json(path: Path) -> _Json:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _Unreadable(f"{path.name} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise _Unreadable(f"{path.name} is not JSON; it may have been cut short") from error
    if not isinstance(found, dict):
        raise _Unreadable(f"{path.name} is no JSON object")
    return found


def _faults(folder: Path) -> Iterator[str]:
    for part in (_configuration_faults, _tokenizer_faults, _weight_faults):
        try:
            yield from part(folder)
        except _Unreadable as error:
            yield str(error)


def _configuration_faults(folder: Path) -> Iterator[str]:
    path = folder / "config.json"
    if not path.is_file():
        yield "has no config.json"
        return
    config = _json(path)
    if not isinstance(config.get("model_type"), str):
        yield "config.json names no model_type"
    if "auto_map" in config:
        yield (
            "config.json asks for code of its own (auto_map), which is never run; use a build of "
            "the model whose architecture transformers has itself"
        )
    quantised = config.get("quantization_config")
    if quantised is not None:
        method = quantised.get("quant_method") if isinstance(quantised, dict) else None
        yield (
            f"its weights are quantised ({method or 'by an unnamed method'}); use the folder with "
            "the plain weights that it was made from"
        )
    if config.get("is_encoder_decoder") is True:
        yield f"is an encoder-decoder model ({config.get('model_type')}); expected a causal one"


def _tokenizer_faults(folder: Path) -> Iterator[str]:
    if not (folder / "tokenizer.json").is_file():
        others = [one for one in ("tokenizer.model", "vocab.json") if (folder / one).is_file()]
        told = f"; convert {others[0]} with AutoTokenizer and save_pretrained" if others else ""
        yield f"has no tokenizer.json{told}"
    elif not isinstance(_json(folder / "tokenizer.json").get("model"), dict):
        yield "tokenizer.json holds no tokenizer"
    path = folder / "tokenizer_config.json"
    if path.is_file() and "auto_map" in _json(path):
        yield "tokenizer_config.json asks for code of its own (auto_map), which is never run"


def _weight_faults(folder: Path) -> Iterator[str]:
    if (folder / INDEX).is_file():
        yield from _sharded_faults(folder)
    elif (folder / WEIGHTS).is_file():
        yield from _type_faults(WEIGHTS, _header(folder / WEIGHTS))
    elif pickled := [one.name for pattern in _PICKLED for one in folder.glob(pattern)]:
        yield (
            f"has pickled weights alone ({shown_names(pickled)}), which can run code and are never "
            "read; use the folder with safetensors"
        )
    elif packed := [one.name for one in folder.glob("*.gguf")]:
        yield (
            f"has GGUF weights alone ({shown_names(packed)}); convert them once: from_pretrained "
            "with gguf_file, then save_pretrained"
        )
    else:
        yield f"has no {WEIGHTS} and no {INDEX}"


def _sharded_faults(folder: Path) -> Iterator[str]:
    placed = _json(folder / INDEX).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise _Unreadable(f"{INDEX} names no shard")
    shards = sorted({str(one) for one in placed.values()})
    if any(Path(one).name != one for one in shards):
        raise _Unreadable(f"{INDEX} names a shard outside the folder")
    missing = [one for one in shards if not (folder / one).is_file()]
    if missing:
        yield f"{len(missing)} of {len(shards)} shards are missing: {shown_names(missing)}"
    for shard in shards:
        if shard in missing:
            continue
        try:
            header = _header(folder / shard)
        except _Unreadable as error:
            yield str(error)
            continue
        lost = [name for name, where in placed.items() if where == shard and name not in header]
        if lost:
            yield f"{shard} lacks tensors that {INDEX} places there: {shown_names(lost)}"
        yield from _type_faults(shard, header)


def _type_faults(file: str, header: _Json) -> Iterator[str]:
    odd = {str(one["dtype"]) for one in header.values()} - _PLAIN_TYPES
    if odd:
        yield f"{file} holds quantised tensors of type {', '.join(sorted(odd))}"


def _header(path: Path) -> _Json:
    """The tensors of a safetensors file by name, whose bytes are all there.

    Raises: _Unreadable: no such file, or one that was cut short.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        file.seek(0)
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise _Unreadable(
                f"{path.name} is a pointer of Git LFS, not the weights; run `git lfs pull` there"
            )
        file.seek(8)
        if size < 8 or not 2 <= length <= _MAX_HEADER_BYTES:
            raise _Unreadable(f"{path.name} is no safetensors file")
        raw = file.read(length)
    if len(raw) < length:
        raise _Unreadable(f"{path.name} is cut short: {size} bytes end within its header")
    try:
        tensors = json.loads(raw)
        tensors.pop("__metadata__", None)
        ends = [0]
        for one in tensors.values():
            first, last = one["data_offsets"]
            item = _ITEM_BYTES.get(one["dtype"])
            if item is not None and last - first != item * math.prod(one["shape"]):
                raise ValueError
            ends.append(last)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _Unreadable(f"{path.name} has a damaged header") from error
    expected = 8 + length + max(ends)
    if size != expected:
        how = "cut short" if size < expected else "longer than its header says"
        raise _Unreadable(f"{path.name} is {how}: expected {expected} bytes, got {size}")
    found: _Json = tensors
    return found
