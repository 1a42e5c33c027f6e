"""Which model this is: its architecture and size, and hashes of everything that decides its output.

Two folders with one identity give the same outputs, up to floating-point rounding. A name says
nothing: whoever copies other weights into a folder keeps the name.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from lada_secure.canonical import canonical_json, sha256_hex
from lada_secure.errors import ParameterError
from lada_secure.storage.whole_files import read_if_there, replace_file

_BLOCK_BYTES: Final = 2**20
# Files that decide which tokens a text has; a folder has some of them.
_TOKENIZER: Final = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
_TEMPLATES: Final = ("chat_template.jinja",)
_CACHE_FORMAT: Final = "lada-file-hashes/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelIdentity:
    """A model that can be told from any other.

    architecture: as its configuration names it. parameters: numbers in its weights, >= 1.
    licence, revision: what its owner says of them, perhaps empty. weights_sha256: of the
    configuration and every file of weights; tokenizer_sha256, template_sha256: of the tokenizer's
    files, and of how questions are put into its words. All hexadecimal, 64 digits.
    """

    architecture: str
    parameters: int
    licence: str
    revision: str
    weights_sha256: str
    tokenizer_sha256: str
    template_sha256: str

    def changes(self, other: ModelIdentity) -> tuple[str, ...]:
        """Names of the fields in which another identity differs."""
        mine, its = asdict(self), asdict(other)
        return tuple(name for name in mine if mine[name] != its[name])


class FileHashes:
    """SHA-256 of files, taken once per file: gigabytes of weights take seconds each time.

    A file counts as the same while device, inode, size and both times of change are: the time of a
    change of its inode is the kernel's, so a file that was written has another one.
    """

    def __init__(self, cache: Path | None) -> None:
        """Args: cache: file that keeps hashes between runs, None for this run alone."""
        self._cache = cache
        self._known: dict[str, str] = _read_cache(cache)

    def sha256(self, path: Path) -> str:
        """Hash of a file. Raises: ParameterError: it cannot be read."""
        try:
            with path.open("rb") as file:
                mark = _mark(path)
                if mark not in self._known:
                    digest = hashlib.sha256()
                    while block := file.read(_BLOCK_BYTES):
                        digest.update(block)
                    # Not kept where the file changed while it was read.
                    if _mark(path) != mark:
                        raise ParameterError(f"{path} changed while it was read; copy it, then try")
                    self._known[mark] = digest.hexdigest()
                    self._keep()
        except OSError as error:
            raise ParameterError(f"{path}: cannot be read: {error.strerror}") from error
        return self._known[mark]

    def of_files(self, folder: Path, names: Iterable[str]) -> str:
        """One hash over the files of a folder that are there, by name."""
        present = sorted(name for name in names if (folder / name).is_file())
        return sha256_hex(canonical_json([[name, self.sha256(folder / name)] for name in present]))

    def _keep(self) -> None:
        if self._cache is None:
            return
        content = json.dumps({"format": _CACHE_FORMAT, "files": self._known}, sort_keys=True)
        try:
            replace_file(self._cache, content.encode("utf-8"))
        except OSError as error:
            raise ParameterError(f"cannot write {self._cache}: {error.strerror}") from error


def _mark(path: Path) -> str:
    found = path.stat()
    return ":".join(
        str(one)
        for one in (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    )


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
    """The identity of a model folder, from its files alone.

    Args: template: names how questions are put: a style, or a site's own template as text.
    Raises: ParameterError: no configuration, or weights that cannot be read.
    """
    weights = sorted(path.name for path in folder.glob("*.safetensors"))
    config = _config(folder)
    named = config.get("architectures")
    return ModelIdentity(
        architecture=str(named[0]) if isinstance(named, list) and named else "",
        parameters=sum(_parameters(folder / name) for name in weights),
        licence=licence,
        revision=revision,
        weights_sha256=hashes.of_files(folder, ("config.json", *weights)),
        tokenizer_sha256=hashes.of_files(folder, _TOKENIZER),
        template_sha256=sha256_hex(
            canonical_json([template, hashes.of_files(folder, _TEMPLATES)])
        ),
    )


def _config(folder: Path) -> Mapping[str, object]:
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ParameterError(f"{folder}: config.json cannot be read") from error
    return found if isinstance(found, dict) else {}


def _parameters(path: Path) -> int:
    """Numbers in a safetensors file, by its header."""
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        shapes = [one["shape"] for name, one in header.items() if name != "__metadata__"]
        return sum(math.prod(shape) for shape in shapes)
    except (OSError, ValueError, TypeError, KeyError, OverflowError, MemoryError) as error:
        raise ParameterError(f"{path}: no safetensors file, or one that was cut short") from error
