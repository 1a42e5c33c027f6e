"""What the LLM has said of the public pool, on disk, so that a restart need not ask it again.

Looking at the pool is the coordinator's longest computation and everything after it needs the
result. A look is a function of the plan, the LLM and its adapters, so it is named by all of them;
one that is missing or damaged is simply computed again. Files stay with the coordinator: what its
LLM knows is its own.
"""

from __future__ import annotations

import io
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from lada_secure.canonical import Json, canonical_json, sha256_hex
from lada_secure.method.llm_round import PoolView
from lada_secure.models.confidence import Answers
from lada_secure.storage.whole_files import replace_file

LOG = logging.getLogger(__name__)

_DIGEST_BYTES: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceCache:
    """A folder with one file per look. Writing may fail: then the next process looks again."""

    folder: Path

    def view(self, about: Json) -> PoolView | None:
        """The kept view of the pool under a plan and an LLM; None where there is none."""
        raw = self._read("view", about)
        if raw is None:
            return None
        with np.load(io.BytesIO(raw), allow_pickle=False) as arrays:
            return PoolView(features=arrays["features"], cells=arrays["cells"])

    def keep_view(self, about: Json, view: PoolView) -> None:
        """Remember a view."""
        into = io.BytesIO()
        np.savez(into, features=view.features, cells=view.cells)
        self._write("view", about, into.getvalue())

    def answers(self, about: Json) -> Answers | None:
        """The kept answers to some pool samples; None where there are none."""
        raw = self._read("answers", about)
        if raw is None:
            return None
        value = json.loads(raw)
        return Answers(
            paths=tuple(value["paths"]),
            right=np.array(value["right"], dtype=np.bool_),
            confidence=np.array(value["certainty"], dtype=np.float64),
        )

    def keep_answers(self, about: Json, answers: Answers) -> None:
        """Remember answers, every number exactly."""
        value: Json = {
            "paths": list(answers.paths),
            "right": answers.right.tolist(),
            "certainty": answers.confidence.tolist(),
        }
        self._write("answers", about, canonical_json(value))

    def _path(self, what: str, about: Json) -> Path:
        return self.folder / f"{what}-{sha256_hex(canonical_json(about))[:32]}"

    def _read(self, what: str, about: Json) -> bytes | None:
        """The content, if it is what was written."""
        path = self._path(what, about)
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

    def _write(self, what: str, about: Json, content: bytes) -> None:
        path = self._path(what, about)
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            replace_file(path, sha256_hex(content).encode("ascii") + content, mode=0o600)
        except OSError as error:
            LOG.warning("cannot keep %s: %s; a restart computes it again", path, error.strerror)
