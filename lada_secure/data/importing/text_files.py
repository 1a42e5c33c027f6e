"""Files of text: which encoding, which line ends, and lines that are never too long to hold."""

from __future__ import annotations

import codecs
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TextIO

from lada_secure.data.importing.rows import MAX_CELL_CHARACTERS
from lada_secure.errors import ParameterError, TransportError

SAMPLE_BYTES: Final = 1024 * 1024

# The longer one first: a UTF-32 mark begins like a UTF-16 one.
_MARKS: Final = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# Zeros between letters are how UTF-16 looks without its mark.
_ZEROS_OF_UTF16: Final = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class TextForm:
    """encoding: to open the file with. said: what was found, in words."""

    encoding: str
    said: str


def check_there(path: Path, *, folder: bool) -> None:
    """Raises: ParameterError: it is not there, may not be looked at, or is something else.

    A pipe can be read only once, and its second import could not give the same bytes.
    """
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ParameterError(f"{path}: there is no such file") from error
    except OSError as error:
        raise ParameterError(f"cannot read {path}: {error.strerror}") from error
    if not (stat.S_ISDIR if folder else stat.S_ISREG)(found.st_mode):
        what = "a folder" if folder else "a regular file"
        raise ParameterError(f"{path}: expected {what}, got something else")


def sample(path: Path) -> bytes:
    """The beginning of a file. Raises: ParameterError: unreadable, empty, or no regular file."""
    check_there(path, folder=False)
    try:
        with path.open("rb") as file:
            found = file.read(SAMPLE_BYTES)
    except OSError as error:
        raise ParameterError(f"cannot read {path}: {error.strerror}") from error
    if not found.strip(b"\r\n\t \x00"):
        raise ParameterError(f"{path}: holds nothing; expected at least one row")
    return found


def text_form(path: Path, named: str | None) -> TextForm:
    """The encoding of a file: by its byte-order mark, else as named, else UTF-8; never by guess.

    Args: named: by the mapping. Raises: ParameterError: the mark says another encoding than that.
    """
    raw = sample(path)
    mark = next((name for signs, name in _MARKS if raw.startswith(signs)), None)
    encoding = mark or named or "utf-8"
    if mark and named and _family(mark) != _family(named):
        raise ParameterError(
            f"{path}:1: the byte-order mark says {_family(mark)}, and the mapping says "
            f"encoding = {named!r}; leave it out of [source]"
        )
    if mark is None and _family(encoding) == "utf-8" and raw.count(0) > _ZEROS_OF_UTF16 * len(raw):
        raise ParameterError(
            f"{path}:1: every second byte is zero, as in UTF-16 without a byte-order mark; say "
            'encoding = "utf-16-le" (or "utf-16-be") in [source]'
        )
    why = "byte-order mark" if mark else "named in the mapping" if named else "no byte-order mark"
    return TextForm(
        encoding=encoding, said=f"{_family(encoding)} ({why}), line ends {_line_ends(raw)}"
    )


def _family(encoding: str) -> str:
    name = codecs.lookup(encoding).name.removesuffix("-sig").replace("_", "-")
    return name.removesuffix("-le").removesuffix("-be") if name.startswith("utf") else name


def _line_ends(raw: bytes) -> str:
    windows = raw.count(b"\r\n")
    counts = {
        "CR LF": windows,
        "LF": raw.count(b"\n") - windows,
        "CR": raw.count(b"\r") - windows,
    }
    found = [name for name, count in counts.items() if count]
    # In UTF-16 the two signs of CR LF are apart.
    return " and ".join(found) if found else "none"


def open_text(path: Path, form: TextForm) -> TextIO:
    """Open a file so that line ends stay as they are and bytes that are no text can be told.

    Such bytes become lone surrogates, which no proper text holds (PEP 383); see `rows.is_text`.
    """
    errors = "strict" if _family(form.encoding).startswith(("utf-16", "utf-32")) else None
    try:
        return path.open(encoding=form.encoding, errors=errors or "surrogateescape", newline="")
    except OSError as error:
        raise ParameterError(f"cannot read {path}: {error.strerror}") from error


def lines_of(file: TextIO, path: Path) -> Iterator[str]:
    """The lines of a file with their ends.

    Raises: ParameterError: a line of more than 16 Mi characters, or bytes that end the decoding.
        TransportError: the disk fails.
    """
    line = 0
    try:
        while text := file.readline(MAX_CELL_CHARACTERS):
            line += 1
            if len(text) >= MAX_CELL_CHARACTERS:
                raise ParameterError(
                    f"{path}:{line}: a line has more than {MAX_CELL_CHARACTERS} characters; "
                    "is this a file of text?"
                )
            yield text
    except UnicodeError as error:
        raise ParameterError(
            f"{path}:{line + 1}: this line, or one of the next, is not {file.encoding}; "
            "name the right encoding in [source]"
        ) from error
    except OSError as error:
        raise TransportError(f"cannot read {path} on: {error.strerror}") from error
