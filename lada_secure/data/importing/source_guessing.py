"""How a source is to be read, from a look at its first bytes: the table [source] of a mapping."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from lada_secure.data.importing.delimited import DELIMITERS
from lada_secure.data.importing.mapping import SourceSettings
from lada_secure.data.importing.sources import kind_of
from lada_secure.data.importing.text_files import sample, text_form
from lada_secure.errors import ParameterError

# An object of JSON, and the key of its first list of objects.
_LIST: Final = re.compile(rb'\A[\xef\xbb\xbf\s]*\{(?:.*?)"([^"\\]{1,80})"\s*:\s*\[\s*\{', re.DOTALL)
# What Excel writes above a header.
_STATED: Final = re.compile(r'"?sep=(.)"?', re.IGNORECASE)
# Of the bytes of a text in a Latin script, fewer are letters with accents.
_ACCENTS: Final = 0.15


@dataclass(slots=True)
class Notes:
    """guessed: what was found out. open: what somebody must fill in."""

    guessed: list[str] = field(default_factory=list)
    open: list[str] = field(default_factory=list)


def guessed_source(
    source: str, query: str | None, sheet: str | None, notes: Notes
) -> SourceSettings:
    """What is to be said of a source. Raises: ParameterError: an option that is not for it."""
    kind = kind_of(source, SourceSettings())
    if query is not None and kind != "sql":
        raise ParameterError(f"--query: is for a database, and {source} is none; leave it out")
    if kind == "sql":
        return SourceSettings(query=query)
    if kind == "excel":
        return SourceSettings(sheet=sheet)
    if kind == "dataset":
        return SourceSettings(split=sheet)
    if sheet is not None:
        raise ParameterError(
            f"--sheet: is for a workbook or a saved dataset, and {source} is none; leave it out"
        )
    path = Path(source)
    if kind not in ("csv", "json", "jsonl"):
        return SourceSettings()
    encoding = _encoding(path, notes)
    if kind == "csv":
        first, *_ = [*_sample_lines(path, encoding), ""]
        if stated := _STATED.fullmatch(first):
            notes.guessed.append(f"line 1 says delimiter {stated[1]!r}; the header stands below")
            return SourceSettings(encoding=encoding, delimiter=stated[1], skip_lines=1)
        return SourceSettings(encoding=encoding, delimiter=_delimiter(path, encoding, notes))
    if kind == "json" and (found := _LIST.search(sample(path))):
        # A bundle may list other things first, as its links.
        bundle = re.search(rb'"resourceType"\s*:\s*"Bundle"', sample(path)) is not None
        at = "entry" if bundle else found[1].decode("utf-8", "replace")
        inside = "resource" if bundle else ""
        what = "a FHIR bundle" if inside else "an object"
        notes.guessed.append(f"{what} whose list of rows is {at!r}")
        return SourceSettings(encoding=encoding, at=at, inside=inside)
    return SourceSettings(encoding=encoding)


def _encoding(path: Path, notes: Notes) -> str | None:
    """None where the file says it, by its mark or by being UTF-8."""
    raw = sample(path)
    if text_form(path, None).encoding != "utf-8":
        return None
    try:
        # The sample may end inside a character.
        raw[: raw.rfind(b"\n") + 1 or len(raw)].decode("utf-8")
        return None
    except UnicodeDecodeError:
        pass
    name = _single_byte(raw)
    notes.open.append(f"not UTF-8; it may be {name}: look whether letters with accents are right")
    return name


def _single_byte(raw: bytes) -> str:
    """A guess: cp1252 where letters beyond ASCII are as rare as accents, else by statistics."""
    beyond = sum(byte >= 0x80 for byte in raw)
    if beyond < _ACCENTS * len(raw):
        return "cp1252"
    try:
        from charset_normalizer import from_bytes
    except ImportError:
        return "cp1252"
    best = from_bytes(raw).best()
    return "cp1252" if best is None else best.encoding


def _sample_lines(path: Path, encoding: str | None) -> list[str]:
    text = sample(path).decode(text_form(path, encoding).encoding, "replace")
    return text.removeprefix("\ufeff").splitlines()[:20]


def _delimiter(path: Path, encoding: str | None, notes: Notes) -> str:
    lines = _sample_lines(path, encoding)
    counts = {sign: [line.count(sign) for line in lines if line.strip()] for sign in DELIMITERS}
    # The same number in every line tells more than many in one.
    best = max(DELIMITERS, key=lambda sign: (min(counts[sign]), counts[sign][0]))
    notes.guessed.append(f"delimiter {best!r}")
    return best


def source_lines(settings: SourceSettings) -> Iterator[str]:
    """The table [source], where there is something to say."""
    told = {
        name: value
        for name in (
            *("encoding", "delimiter", "skip_lines", "sheet", "split", "query", "at", "inside"),
        )
        if (value := getattr(settings, name))
    }
    if told or settings.only:
        yield "[source]"
        yield from (
            f"{name} = {value if isinstance(value, int) else quoted(value)}"
            for name, value in told.items()
        )
        yield from (
            f"only = {{ {name} = {quoted(value)} }}  # OPEN: is it the type that is meant?"
            for name, value in settings.only.items()
        )
        yield ""


def quoted(text: str) -> str:
    """A text as TOML writes it."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
