"""Near duplicates among the files of an import: across the split, and with the public pool."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np

from lada_secure.data.importing.near_duplicates import MAX_INDEXED, NearTexts
from lada_secure.data.importing.outputs import DUPLICATES, HELD_OUT, RECORDS, OutputFolder
from lada_secure.data.importing.progress import LOOKED_AT, Progress
from lada_secure.data.importing.reports import NearCounts
from lada_secure.data.records import PoolSample

_CHUNK: Final = 512
# So many lines are written; all of them are counted.
_MAX_WRITTEN: Final = 100_000


def csv_line(cells: Iterable[object]) -> bytes:
    """One line of a CSV file in UTF-8."""
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue().encode("utf-8")


def count_near(
    out: OutputFolder, pool: Sequence[PoolSample], *, records: int, progress: Progress
) -> NearCounts:
    """Look through the parts that were written; they are named line by line in `DUPLICATES`.

    Compared is the question with its choices. Args: records: in `RECORDS`, for the progress.
    Raises: TransportError: the disk is full.
    """
    held = _Lines(out.part(HELD_OUT))
    indexed = min(len(held), MAX_INDEXED), min(len(pool), MAX_INDEXED)
    whole = sum(indexed) + records + (len(held) if pool else 0)

    def told(done: int) -> None:
        progress(done, LOOKED_AT, whole)

    index = NearTexts(held, told=told)
    samples = NearTexts(
        [text_of(one.question, one.choices) for one in pool[:MAX_INDEXED]],
        told=lambda done: told(indexed[0] + done),
    )
    out.write(DUPLICATES, csv_line(("file", "line", "near", "named")))
    counts = {"across": 0, "pool": 0}
    for written, (name, line, found, kind) in enumerate(
        _found(out, index, samples, told=lambda done: told(sum(indexed) + done))
    ):
        counts[kind] += 1
        if written < _MAX_WRITTEN:
            other = (HELD_OUT, found + 1) if kind == "across" else ("pool", pool[found].sample_id)
            out.write(DUPLICATES, csv_line((name, line, *other)))
    return NearCounts(
        **counts,
        compared=sum(indexed),
        of_all=len(held) + len(pool),
        cut=index.cut + samples.cut,
    )


def _found(
    out: OutputFolder, held: NearTexts, samples: NearTexts, *, told: Callable[[int], None]
) -> Iterator[tuple[str, int, int, str]]:
    """File, line, what was found, and in which of the two indexes."""
    done = 0
    for name, indexes in (
        (RECORDS, (("across", held), ("pool", samples))),
        (HELD_OUT, (("pool", samples),)),
    ):
        wanted = [(kind, index) for kind, index in indexes if len(index)]
        texts, first = _texts(out.part(name)), 1
        while wanted and (chunk := list(islice(texts, _CHUNK))):
            results = [(kind, index.find(chunk)) for kind, index in wanted]
            for at in range(len(chunk)):
                for kind, places in results:
                    place = places[at]
                    if place is not None:
                        yield name, first + at, place, kind
            first += len(chunk)
            done += len(chunk)
            told(done)


class _Lines:
    """The texts of a part file: read in order, or again by their place."""

    def __init__(self, part: Path) -> None:
        self._part = part
        with part.open("rb") as file:
            lengths = np.fromiter((len(line) for line in file), np.int64)
        self._starts = np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths)))

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __iter__(self) -> Iterator[str]:
        return _texts(self._part)

    def __getitem__(self, place: int, /) -> str:
        with self._part.open("rb") as file:
            file.seek(int(self._starts[place]))
            return _text_in(file.readline())


def _texts(part: Path) -> Iterator[str]:
    with part.open("rb") as file:
        yield from map(_text_in, file)


def _text_in(line: bytes) -> str:
    record = json.loads(line)
    return text_of(record["question"], record["choices"])


def text_of(question: str, choices: Sequence[str]) -> str:
    """What of a question is compared."""
    return "\n".join((question, *choices))
