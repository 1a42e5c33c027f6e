"""A folder that is there as a whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from lada_secure.errors import ParameterError, TransportError
from lada_secure.storage.whole_files import drop_empty, make_folder, sync, undone_when_stopped


def check_new(out: Path) -> None:
    """Raises: ParameterError: there is something in that place already."""
    if out.exists() or out.is_symlink():
        raise ParameterError(f"--out: {out} is there already; expected a new folder, name another")


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A new folder to write into; it gets its name once everything in it is on the disk.

    Raises: ParameterError: there is something in its place. TransportError: it cannot be written;
        nothing is left. Stopped: likewise.
    """
    check_new(out)
    with undone_when_stopped(f"nothing was left at {out}") as deaf:
        yield from _written(out, deaf)


def _written(out: Path, deaf: Callable[[], None]) -> Iterator[Path]:
    part = out.with_name(f".{out.name}.part-{os.getpid()}")
    new: list[Path] = []
    try:
        new = make_folder(part)
        yield part
        for path in part.rglob("*"):
            sync(path)
        sync(part)
        deaf()
        # Onto a folder that came meanwhile this fails, unless it is empty.
        part.rename(out)
        sync(out.parent)
    except (OSError, SafetensorError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise TransportError(f"--out: cannot write {out}: {why}; nothing was left there") from error
    finally:
        deaf()
        shutil.rmtree(part, ignore_errors=True)
        drop_empty(new)
