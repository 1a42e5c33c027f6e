"""Files that are read whole, and written whole or not at all, whatever kills the writer."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Final

from lada_secure.errors import DiskError, LadaError, ParameterError, Stopped

# As `replace_file` names its parts: the number is that of the writing process.
_PART: Final = re.compile(r"\..+\.([1-9][0-9]{0,9})")

_STOPS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _StopSignal(BaseException):
    """Passes whatever catches Exception on its way to `undone_when_stopped`."""


@contextlib.contextmanager
def undone_when_stopped(told: str) -> Iterator[Callable[[], None]]:
    """Whoever stops the process within the block lets it take away what it has written.

    SIGINT, SIGTERM and SIGHUP unwind the block; a second one meanwhile is not heard, nor is one
    that was ignored before. In another thread than the main one nothing changes.

    Args: told: how things stand after that, for the message.
    Gives: what is to be called once the work is done or being undone: from then on no signal
        counts. Raises: Stopped: by a signal.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {one: signal.getsignal(one) for one in _STOPS}
    # What was not set from Python could not be put back.
    heard = [one for one, handler in before.items() if handler not in (signal.SIG_IGN, None)]

    def deaf() -> None:
        for one in heard:
            signal.signal(one, signal.SIG_IGN)

    def stop(number: int, _frame: FrameType | None) -> None:
        deaf()
        raise _StopSignal(number)

    try:
        for one in heard:
            signal.signal(one, stop)
        yield deaf
    except _StopSignal as error:
        number = signal.Signals(error.args[0])
        raise Stopped(f"stopped by {number.name}; {told}", number) from None
    finally:
        for one in heard:
            signal.signal(one, before[one])


def make_folder(folder: Path) -> list[Path]:
    """Make a folder with those above it.

    Returns: the new ones, the deepest first. Raises: OSError.
    """
    new = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return new


def drop_empty(folders: list[Path]) -> None:
    """Take those of the folders away that hold nothing."""
    for one in folders:
        with contextlib.suppress(OSError):
            one.rmdir()


def read_file(path: Path, *, what: str = "", refusal: type[LadaError] = ParameterError) -> bytes:
    """The content of a file that must be there. Raises: refusal, naming `what` it is and where."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise refusal(f"cannot read {what}{path}: {error.strerror}") from error


def read_at_most(path: Path, max_bytes: int, *, what: str = "") -> bytes:
    """A file from somebody else: at most one byte more than allowed, for a parser to refuse.

    Raises: ParameterError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(max_bytes + 1)
    except OSError as error:
        raise ParameterError(f"cannot read {what}{path}: {error.strerror}") from error


def read_if_there(
    path: Path, *, what: str = "", refusal: type[LadaError] = DiskError
) -> bytes | None:
    """The content of a file, None where there is none. Raises: refusal: it cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise refusal(f"cannot read {what}{path}: {error.strerror}") from error


def replace_file(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Write a file so that a crash leaves the old content or the new, never a part.

    Raises: OSError: disk full, read-only, not permitted; nothing new is left behind.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = open_part(part, mode=mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink()
        raise


def open_part(part: Path, *, mode: int) -> int:
    """A new file that gets its name later, whatever lies there under the name that it has now.

    Returns: its descriptor, to read and write. Raises: OSError: also where somebody else puts a
        file or a link there at this moment.
    """
    part.unlink(missing_ok=True)
    return os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)


def write_atomically(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """`replace_file` for callers who can only give up. Raises: TransportError."""
    try:
        replace_file(path, content, mode=mode)
    except OSError as error:
        raise DiskError(f"cannot write {path}: {error.strerror}") from error


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's names, would survive a power cut.

    Raises: OSError.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep_parts(folder: Path, *, pattern: str = ".*") -> int:
    """Delete what killed processes had not finished to write under a folder.

    Parts of a process that lives stay, unless it is this one, which has written nothing yet: in a
    container every process of a party may have the same number.

    Args: pattern: names of the parts, where other people's files lie beside them.
    Returns: how many there were. Raises: TransportError: the disk refuses.
    """
    found = 0
    try:
        for path in folder.rglob(pattern):
            match = _PART.fullmatch(path.name)
            if match is not None and not process_lives(int(match[1])) and path.is_file():
                path.unlink(missing_ok=True)
                found += 1
    except OSError as error:
        raise DiskError(f"cannot clean up {folder}: {error.strerror}") from error
    return found


def process_lives(process_id: int) -> bool:
    """Whether another process of this number runs."""
    if process_id == os.getpid():
        return False
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
