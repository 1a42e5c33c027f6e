"""What the coordinator keeps of its LLM: its adapters, and what it has said of the public pool.

Adapters are named by their hash and durable before any message speaks of them.

Looking at the pool is the coordinator's longest computation and everything after it needs the
result, so a restart need not look again. A look is a function of the plan, the LLM and its
adapters, so it is named by all of them; one that is missing or damaged is simply computed again.
Files stay with the coordinator: what its LLM knows is its own.
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, TypeVar

import numpy as np

from lada_secure.canonical import Json, canonical_json, sha256_hex
from lada_secure.errors import TransportError
from lada_secure.method.llm_round import PoolView
from lada_secure.models.confidence import Answers
from lada_secure.storage.whole_files import replace_file, sync
from lada_server.board.storage_errors import disk_errors

LOG = logging.getLogger(__name__)

T = TypeVar("T")

_DIGEST_BYTES: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmFiles:
    """One safetensors file per version that was accepted."""

    folder: Path

    def keep(self, weights: bytes) -> str:
        """Store adapters so that they survive a power cut.

        Returns: their version, the SHA-256 of the bytes.
        Raises: TransportError: the disk refuses.
        """
        version = sha256_hex(weights)
        path = self._path(version)
        with disk_errors(f"cannot keep the LLM's adapters in {path}"):
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            replace_file(path, weights)
            sync(self.folder)
        return version

    def read(self, version: str) -> bytes:
        """Adapters that were kept.

        Raises: TransportError: missing or damaged.
        """
        path = self._path(version)
        advice = (
            "the study goes on with them, so restore the coordinator's state folder from its backup"
        )
        with disk_errors(f"cannot read the LLM's adapters {path}", advice=advice):
            raw = path.read_bytes()
        if sha256_hex(raw) != version:
            raise TransportError(f"{path} was damaged on disk; restore it from its backup")
        return raw

    def _path(self, version: str) -> Path:
        return self.folder / f"{version}.safetensors"


@dataclass(frozen=True, slots=True)
class Look(Generic[T]):
    """A kind of look: its name in file names, and its result to bytes and back, exactly."""

    name: str
    encode: Callable[[T], bytes]
    decode: Callable[[bytes], T]


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceCache:
    """A folder with one file per look. Writing may fail: then it is computed again."""

    folder: Path

    def remembered(self, look: Look[T], about: Json, compute: Callable[[], T]) -> T:
        """What was kept of a look, or what `compute` gives, kept. about: all that decides it."""
        path = self.folder / f"{look.name}-{sha256_hex(canonical_json(about))[:32]}"
        kept = _read(path)
        if kept is not None:
            return look.decode(kept)
        found = compute()
        content = look.encode(found)
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            replace_file(path, sha256_hex(content).encode("ascii") + content, mode=0o600)
        except OSError as error:
            LOG.warning("cannot keep %s: %s; a restart computes it again", path, error.strerror)
        return found


def _read(path: Path) -> bytes | None:
    """The content, if it is what was written."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        LOG.warning("cannot read %s: %s; computing it again", path, error.strerror)
        return None
    digest, content = raw[:_DIGEST_BYTES], raw[_DIGEST_BYTES:]
    if sha256_hex(content).encode("ascii") != digest:
        LOG.warning("%s is damaged; computing it again", path)
        return None
    return content


def _view_bytes(view: PoolView) -> bytes:
    into = io.BytesIO()
    np.savez(into, features=view.features, cells=view.cells)
    return into.getvalue()


def _view(raw: bytes) -> PoolView:
    with np.load(io.BytesIO(raw), allow_pickle=False) as arrays:
        return PoolView(features=arrays["features"], cells=arrays["cells"])


def _answers_bytes(answers: Answers) -> bytes:
    return canonical_json(
        {
            "paths": list(answers.paths),
            "right": answers.right.tolist(),
            "certainty": answers.confidence.tolist(),
        }
    )


def _answers(raw: bytes) -> Answers:
    value = json.loads(raw)
    return Answers(
        paths=tuple(value["paths"]),
        right=np.array(value["right"], dtype=np.bool_),
        confidence=np.array(value["certainty"], dtype=np.float64),
    )


VIEW: Final = Look("view", _view_bytes, _view)
ANSWERS: Final = Look("answers", _answers_bytes, _answers)
