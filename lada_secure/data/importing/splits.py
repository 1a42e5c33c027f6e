"""Held-out records by person: a keyed hash of the unit decides, now and in every later import.

All spellings of a unit fall on one side, new rows move nobody, and a larger share keeps those who
were held out before. The key keeps the choice from whoever knows ids but has not the file.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
import stat
from pathlib import Path
from typing import Final

from lada_secure.errors import ParameterError, TransportError
from lada_secure.storage.whole_files import open_part

_SALT_BYTES: Final = 32


def salt_path(mapping: Path) -> Path:
    """Where the salt of a mapping lies: beside it, as `mapping.salt` of `mapping.toml`.

    Raises: ParameterError: the mapping has the name of its salt.
    """
    salt = mapping.with_suffix(".salt")
    if salt == mapping:
        raise ParameterError(f"{mapping}: is called like a salt; call the mapping .toml")
    return salt


def read_salt(path: Path) -> bytes:
    """The salt beside a mapping, made at the first import. Nobody else may read it.

    Returns: 32 secret bytes. Raises: ParameterError: it is no salt, or others may read it.
        TransportError: it cannot be read or made.
    """
    try:
        return _read(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise TransportError(f"cannot read {path}: {error.strerror}") from error
    made = secrets.token_hex(_SALT_BYTES).encode("ascii") + b"\n"
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = open_part(part, mode=0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(made)
            file.flush()
            os.fsync(file.fileno())
        # Of two first imports at a time one wins, and both read what it wrote.
        with contextlib.suppress(FileExistsError):
            os.link(part, path)
        return _read(path)
    except OSError as error:
        raise TransportError(f"cannot write {path}: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)


def _read(path: Path) -> bytes:
    raw = path.read_bytes()
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ParameterError(f"{path}: others may read the salt; chmod 600 {path}")
    try:
        salt = bytes.fromhex(raw.decode("ascii"))
    except ValueError:
        salt = b""
    if len(salt) != _SALT_BYTES:
        raise ParameterError(
            f"{path}: expected {2 * _SALT_BYTES} hexadecimal digits; put the file back from a "
            "backup, or take it away: people then change sides, and a model that has seen some "
            "of them is tested on them"
        )
    return salt


def unit_digest(canonical: str, *, salt: bytes) -> bytes:
    """A keyed hash of a unit in canonical form, 16 bytes."""
    mac = hmac.new(salt, b"lada/split/1/" + canonical.encode("utf-8"), hashlib.sha256)
    return mac.digest()[:16]


def is_held_out(digest: bytes, *, share: float) -> bool:
    """Whether a unit is held out. digest: of `unit_digest`. share: of units, in [0, 1)."""
    return int.from_bytes(digest[:8], "big") < share * 2.0**64
