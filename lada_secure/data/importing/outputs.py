"""The files of an import: written beside their names, and all put in place at the end or none."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final

from lada_secure.errors import ParameterError, TransportError
from lada_secure.storage.whole_files import (
    drop_empty,
    make_folder,
    open_part,
    sweep_parts,
    sync,
    undone_when_stopped,
)

RECORDS: Final = "records.jsonl"
HELD_OUT: Final = "held-out.jsonl"
REJECTS: Final = "rejects.csv"
DUPLICATES: Final = "near-duplicates.csv"
REPORT: Final = "import-report.json"
INDEX: Final = "import-index"
POOL: Final = "pool.jsonl"
POOL_REJECTS: Final = "pool-rejects.csv"
POOL_ALIKE: Final = "pool-alike.csv"
_ALL: Final = (
    *(INDEX, RECORDS, HELD_OUT, REJECTS, DUPLICATES, REPORT),
    *(POOL, POOL_REJECTS, POOL_ALIKE),
)
_BUFFER_BYTES: Final = 1024 * 1024


def check_apart(out: Path, read: Mapping[str, Path], *, written: Iterable[str]) -> None:
    """Raises: ParameterError: an import would write over what it reads.

    Args: read: by what it is. written: names of the files that the import writes.
    """
    names = tuple(written)
    for what, path in read.items():
        for name in names:
            try:
                same = (out / name).samefile(path)
            except (OSError, ValueError):
                continue
            if same:
                raise ParameterError(
                    f"--out {out}: {what} is its {name}, which an import writes; name another "
                    "folder. Nothing was changed"
                )


class OutputFolder:
    """Files that take their names together; whatever ends the work before, nothing has changed.

    A signal to stop is such an end. Only the order of the renamings is left to a power cut, and
    records come last: there is never a records file without its held-out records and its rejects.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, BinaryIO] = {}
        self._new: list[Path] = []
        self._guard = undone_when_stopped(f"nothing was imported, and {folder} is as it was")

    def __enter__(self) -> OutputFolder:
        """Raises: ParameterError: it is a file. TransportError: the folder cannot be made."""
        self._deaf = self._guard.__enter__()
        try:
            self._new = make_folder(self.folder)
            for name in _ALL:
                sweep_parts(self.folder, pattern=f".{name}.*")
        except BaseException as error:
            self.__exit__(*sys.exc_info())
            if isinstance(error, FileExistsError | NotADirectoryError):
                raise ParameterError(
                    f"--out {self.folder}: expected a folder, got a file on the way; name another"
                ) from error
            if isinstance(error, OSError):
                raise TransportError(f"cannot write {self.folder}: {error.strerror}") from error
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._deaf()
        for name in _ALL:
            self.drop(name)
        drop_empty(self._new)
        self._guard.__exit__(kind, error, trace)

    def part(self, name: str) -> Path:
        """Where a file is written before it has its name; `sweep_parts` knows it."""
        return self.folder / f".{name}.{os.getpid()}"

    def open(self, name: str, *, mode: int = 0o600) -> None:
        """Begin a file. Raises: ParameterError: a folder has its name. TransportError."""
        if (self.folder / name).is_dir():
            raise ParameterError(
                f"{self.folder / name}: expected a file or nothing, got a folder; move it away, or "
                "name another --out. Nothing was imported"
            )
        try:
            descriptor = open_part(self.part(name), mode=mode)
            self._files[name] = os.fdopen(descriptor, "wb", buffering=_BUFFER_BYTES)
        except OSError as error:
            raise TransportError(f"cannot write {self.part(name)}: {error.strerror}") from error

    def write(self, name: str, content: bytes) -> None:
        """Add to a file. Raises: TransportError: the disk is full."""
        try:
            self._files[name].write(content)
        except OSError as error:
            raise self._failed(name, error) from error

    def flush(self) -> None:
        """Let all parts be read whole. Raises: TransportError."""
        for name, file in self._files.items():
            try:
                file.flush()
            except OSError as error:
                raise self._failed(name, error) from error

    def drop(self, name: str) -> None:
        """Take a file away that was not put in place."""
        with contextlib.suppress(OSError, KeyError):
            self._files.pop(name).close()
        with contextlib.suppress(OSError):
            self.part(name).unlink()

    def commit(self, *, outdated: Iterable[str] = ()) -> None:
        """Put all files in place, in the order of their beginning.

        Args: outdated: files of an earlier import that this one has none of; they are deleted.
        Raises: TransportError: the disk refuses; no file of this import has then taken its name,
            unless renaming itself failed half-way.
        """
        names = list(self._files)
        name = names[0]
        try:
            for name in names:
                self._files[name].flush()
                os.fsync(self._files[name].fileno())
                self._files[name].close()
            # A signal that came half-way would leave some names new and some old.
            self._deaf()
            for name in outdated:
                (self.folder / name).unlink(missing_ok=True)
            for name in names:
                self.part(name).replace(self.folder / name)
                self._files.pop(name)
            sync(self.folder)
        except OSError as error:
            raise self._failed(name, error) from error

    def _failed(self, name: str, error: OSError) -> TransportError:
        return TransportError(
            f"cannot write {self.folder / name}: {error.strerror}; nothing was imported, make room "
            "and start again"
        )
