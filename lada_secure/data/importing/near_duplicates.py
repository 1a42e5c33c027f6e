"""Texts that are nearly the same: MinHash signatures (Broder 1997) in bands, in fixed memory.

A text is its set of 8-byte windows, folded to lower case and single spaces. Two texts are near
duplicates where at least `SAME` of 64 minima agree, an estimate of the windows' Jaccard index. A
pair of index 0.9 is found with probability 0.99, one of 0.8 with 0.48, one of 0.7 with 0.03; the 16
bands of 4 minima lose less than 0.001 of that. Sorted arrays instead of tables of objects, because
there may be hundreds of thousands of texts: 448 bytes each.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

SAME: Final = 0.8
# Of more texts these are taken: the first ones. 90 MB.
MAX_INDEXED: Final = 200_000
_WINDOW: Final = 8
_HASHES: Final = 64
_BANDS: Final = 16
_ROWS: Final = _HASHES // _BANDS
# Of texts in one band, so many are compared; that one is alike is all that is told.
_COMPARED: Final = 16
_AT_ONCE: Final = 32

_Words: TypeAlias = NDArray[np.uint64]


def _mixed(words: _Words) -> _Words:
    """Every bit of a word depends on all of it (Steele et al. 2014, SplitMix64)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: _Words = words ^ (words >> np.uint64(31))
    return mixed


# Odd, so that each is a permutation of the 64-bit words.
_FACTORS: Final = _mixed(np.arange(1, _HASHES + 1, dtype=np.uint64)) | np.uint64(1)
_BAND_FACTORS: Final = _mixed(np.arange(101, 101 + _ROWS, dtype=np.uint64)) | np.uint64(1)


def signatures(texts: Iterable[str]) -> NDArray[np.uint32]:
    """(texts, 64) uint32: the minima of every text. A text shorter than a window is one window."""
    rest = iter(texts)
    found = []
    while chunk := list(islice(rest, _AT_ONCE)):
        found.append(_signatures(chunk))
    return np.concatenate(found) if found else np.empty((0, _HASHES), np.uint32)


def _signatures(texts: Sequence[str]) -> NDArray[np.uint32]:
    plain = [_plain(text) for text in texts]
    lengths = np.array([len(text) for text in plain])
    letters = np.frombuffer(b"".join(plain), np.uint8).astype(np.uint64)
    count = len(letters) - _WINDOW + 1
    words = np.zeros(count, np.uint64)
    for place in range(_WINDOW):
        words |= letters[place : place + count] << np.uint64(8 * place)
    ends = np.cumsum(lengths)
    # Windows that begin in one text and end in the next belong to neither.
    inside = np.ones(len(letters), bool)
    for back in range(1, _WINDOW):
        inside[ends - back] = False
    words = _mixed(words[inside[:count]])
    starts = np.concatenate(([0], np.cumsum(lengths - _WINDOW + 1)[:-1]))
    hashes = (words[:, None] * _FACTORS[None, :]) >> np.uint64(32)
    return np.minimum.reduceat(hashes, starts, axis=0).astype(np.uint32)


def _plain(text: str) -> bytes:
    folded = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return folded.encode("utf-8", "replace").ljust(_WINDOW)


def _bands(found: NDArray[np.uint32]) -> _Words:
    """(texts, 16): one word a band."""
    banded = found.reshape(len(found), _BANDS, _ROWS).astype(np.uint64)
    return _mixed((banded * _BAND_FACTORS).sum(axis=2, dtype=np.uint64))


class NearTexts:
    """Finds near duplicates of the texts that it was made of."""

    def __init__(self, texts: Iterable[str]) -> None:
        """texts: at most `MAX_INDEXED`; named by their place."""
        self._signatures = signatures(texts)
        bands = _bands(self._signatures)
        self._order = np.argsort(bands, axis=0, kind="stable").astype(np.uint32)
        self._bands = np.take_along_axis(bands, self._order, axis=0)

    def __len__(self) -> int:
        return len(self._signatures)

    def find(self, texts: Sequence[str]) -> list[int | None]:
        """For each text, the place of the most alike of those indexed; None where none is near."""
        if not len(self._signatures) or not texts:
            return [None] * len(texts)
        found = signatures(texts)
        bands = _bands(found)
        best = np.zeros(len(texts), np.int64)
        where = np.full(len(texts), -1, np.int64)
        for band in range(_BANDS):
            known = self._bands[:, band]
            at = np.searchsorted(known, bands[:, band])
            text = np.arange(len(texts))
            for _ in range(_COMPARED):
                there = at < len(known)
                text, at = text[there], at[there]
                alike = known[at] == bands[text, band]
                text, at = text[alike], at[alike]
                if not len(text):
                    break
                place = self._order[at, band].astype(np.int64)
                same = (self._signatures[place] == found[text]).sum(axis=1)
                # Of two that are as much alike, the first one: every run says the same.
                better = (same > best[text]) | ((same == best[text]) & (place < where[text]))
                best[text[better]], where[text[better]] = same[better], place[better]
                at = at + 1
        near = best >= SAME * _HASHES
        return [int(one) if is_ else None for one, is_ in zip(where, near, strict=True)]
