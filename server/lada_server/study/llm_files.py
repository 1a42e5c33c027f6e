"""Adapters of the LLM on disk, named by their hash; durable before any message speaks of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lada_secure.canonical import sha256_hex
from lada_secure.errors import TransportError
from lada_secure.storage.whole_files import replace_file, sync
from lada_server.board.storage_errors import disk_errors


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
