"""JSON Lines, and JSON files that hold one long list: row by row, keys twice found.

FHIR comes in both: NDJSON is JSON Lines of resources, a bundle is a JSON file whose `entry` list
holds each resource under the key `resource`. Numbers keep their digits: 1.50 is not 1.5.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from json.decoder import JSONDecoder
from pathlib import Path
from typing import Any, Final, TextIO

from lada_secure.data.importing.mapping import SourceSettings
from lada_secure.data.importing.rows import (
    MAX_CELL_CHARACTERS,
    KeyTwice,
    Reject,
    Row,
    Source,
    flat_row,
    is_text,
    json_object,
)
from lada_secure.data.importing.text_files import lines_of, open_text, text_form
from lada_secure.errors import ParameterError, TransportError

_CHUNK: Final = 64 * 1024
_SPACE: Final = " \t\r\n"


def open_json_lines(path: Path, settings: SourceSettings) -> Source:
    """Open JSON Lines: one object a line; blank lines are none. Raises: ParameterError."""
    form = text_form(path, settings.encoding)

    def read(needed: frozenset[str]) -> Iterator[Row | Reject]:
        decoder = JSONDecoder(
            object_pairs_hook=json_object, parse_float=str, parse_int=str, parse_constant=str
        )
        with open_text(path, form) as file:
            for line, text in enumerate(lines_of(file, path), start=1):
                if not text.isspace():
                    yield _row(decoder, line, text.strip(_SPACE), settings, needed)

    return Source(columns=None, said=(form.said, "one JSON object a line"), read=read)


def open_json_list(path: Path, settings: SourceSettings) -> Source:
    """Open a JSON file that is a list of objects, or an object that has one at `at`.

    Raises: ParameterError.
    """
    form = text_form(path, settings.encoding)

    def read(needed: frozenset[str]) -> Iterator[Row | Reject]:
        with open_text(path, form) as file:
            yield from _Elements(file, path, settings, needed).rows()

    where = f"the list {settings.at!r}" if settings.at else "one JSON list"
    return Source(columns=None, said=(form.said, where), read=read)


def _row(
    decoder: JSONDecoder, line: int, text: str, settings: SourceSettings, needed: frozenset[str]
) -> Row | Reject:
    if not is_text(text):
        return Reject(line, "not-in-encoding")
    try:
        return _object_row(decoder.decode(text), line, settings, needed)
    except KeyTwice:
        return Reject(line, "key-twice")
    except (ValueError, RecursionError):
        return Reject(line, "not-json")


def _object_row(
    value: Any, line: int, settings: SourceSettings, needed: frozenset[str]
) -> Row | Reject:
    inner = value.get(settings.inside) if settings.inside and isinstance(value, dict) else value
    if not isinstance(inner, dict):
        return Reject(line, "not-json", settings.inside)
    try:
        return flat_row(line, inner, needed)
    except RecursionError:
        return Reject(line, "not-json")


class _Elements:
    """Reads the elements of a list, whatever is around it, with only one of them in memory."""

    def __init__(
        self, file: TextIO, path: Path, settings: SourceSettings, needed: frozenset[str]
    ) -> None:
        self._file, self._path = file, path
        self._settings, self._needed = settings, needed
        self._decoder = JSONDecoder(
            object_pairs_hook=self._object, parse_float=str, parse_int=str, parse_constant=str
        )
        self._text, self._at, self._line, self._ended = "", 0, 1, False
        # Whether an object of the last value has the same key twice.
        self._twice = False

    def rows(self) -> Iterator[Row | Reject]:
        keys = self._settings.at.split(".") if self._settings.at else []
        for key in keys:
            if not self._go_to(key):
                self._broken(f"there is no key {key!r}; see [source] at")
        if self._sign() != "[":
            at = self._settings.at
            raise ParameterError(
                f"{self._path}:{self._line}: expected a list{f' at {at!r}' if at else ''}, got "
                "something else; name its place as [source] at (a FHIR bundle: at = "
                '"entry" and inside = "resource")'
            )
        for line, value in self._list():
            if self._twice:
                yield Reject(line, "key-twice")
            else:
                yield _object_row(value, line, self._settings, self._needed)
        # A second list would be rows that nobody has read.
        for key in reversed(keys):
            if not self._between("}") and self._go_on_to(key):
                self._broken(f"the key {key!r} stands here again, and its rows would be lost")
        if self._sign():
            self._broken(
                "something stands behind the end of the JSON; where every line is an object of its "
                'own, say kind = "jsonl" in [source]'
            )

    def _list(self) -> Iterator[tuple[int, Any]]:
        """The elements of the list that begins here, with their lines."""
        self._take(1)
        if self._sign() == "]":
            self._take(1)
            return
        while True:
            self._sign()
            line = self._line
            yield line, self._value()
            if self._between("]"):
                return

    def _go_to(self, key: str) -> bool:
        """Into the value of a key of the object that begins here. Returns: whether it has one."""
        if self._sign() != "{":
            self._broken(f"expected an object with the key {key!r}")
        self._take(1)
        if self._sign() == "}":
            self._take(1)
            return False
        return self._go_on_to(key)

    def _go_on_to(self, key: str) -> bool:
        """As `_go_to`, from the next key on."""
        while True:
            self._sign()
            found = self._value()
            if self._sign() != ":":
                self._broken("expected a colon behind a key")
            self._take(1)
            if found == key:
                return True
            self._pass_over()
            if self._between("}"):
                return False

    def _pass_over(self) -> None:
        """Past a value, which may be a list of any length."""
        if self._sign() == "[":
            for _ in self._list():
                pass
        else:
            self._value()

    def _between(self, end: str) -> bool:
        """Past what follows an element. Returns: whether it was the last."""
        sign = self._sign()
        if sign not in (",", end):
            self._broken(f"expected a comma or {end}")
        self._take(1)
        return sign == end

    def _object(self, pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
        """An object of JSON. An exception would leave the place behind it unknown."""
        found = dict(pairs)
        self._twice |= len(found) != len(pairs)
        return found

    def _value(self) -> Any:
        self._sign()
        wanted = _CHUNK
        while True:
            self._twice = False
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
                # A number may go on behind the end of what was read.
                if end < len(self._text) or self._ended:
                    self._take(end - self._at)
                    return value
            except (ValueError, RecursionError):
                if self._ended:
                    self._broken("this is not JSON")
            if len(self._text) - self._at > MAX_CELL_CHARACTERS:
                self._broken(f"not JSON, or an element of over {MAX_CELL_CHARACTERS} characters")
            # Twice as much each time, so that a long element is not parsed again for every chunk.
            self._more(wanted)
            wanted *= 2

    def _sign(self) -> str:
        """The next character that is no white space; empty at the end."""
        while True:
            while self._at < len(self._text):
                sign = self._text[self._at]
                if sign not in _SPACE:
                    return sign
                self._take(1)
            if self._ended:
                return ""
            self._more(_CHUNK)

    def _take(self, characters: int) -> None:
        self._line += self._text.count("\n", self._at, self._at + characters)
        self._at += characters

    def _more(self, characters: int) -> None:
        try:
            read = self._file.read(characters)
        except UnicodeError as error:
            raise ParameterError(
                f"{self._path}:{self._line}: behind this line bytes are no text; name the "
                "encoding in [source]"
            ) from error
        except OSError as error:
            raise TransportError(f"cannot read {self._path} on: {error.strerror}") from error
        self._ended = not read
        self._text, self._at = self._text[self._at :] + read, 0

    def _broken(self, what: str) -> None:
        raise ParameterError(f"{self._path}:{self._line}: {what}; nothing was imported")
