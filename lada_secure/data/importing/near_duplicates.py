"""Texts that are nearly the same: by MinHash in bands (Broder 1997), then compared whole.

A text is its set of 8-byte windows, folded to lower case and single spaces. Two texts are near
duplicates where the Jaccard index of their sets is `SAME` or more. That is computed of the sets
themselves, so whatever is told is true; what may be missed is a pair that is no candidate. A pair
of index s agrees in one of 12 bands of 5 minima with probability 1 - (1 - s^5)^12 (Leskovec et al.
2014, section 3.4.2): 0.991 at 0.8, above 0.9999 at 0.9. Sorted arrays instead of tables of objects,
because there may be hundreds of thousands of texts: 204 bytes each.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice, pairwise
from typing import Any, Final, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

SAME: Final = 0.8
# Of more texts these are taken: the first ones. 41 MB.
MAX_INDEXED: Final = 200_000
BANDS: Final = 12
ROWS: Final = 5
_WINDOW: Final = 8
_HASHES: Final = BANDS * ROWS
# Of texts in one band, so many are compared by their minima; of all bands, so many whole. Form
# letters fill bands with thousands.
_COMPARED: Final = 256
_WHOLE: Final = 32
# Equal minima without which a candidate is not compared whole: of pairs at `SAME`, one of 10,000
# has fewer (binomial, 60 draws).
_LEAST_EQUAL: Final = 36
_AT_ONCE: Final = 32
# Windows of indexed texts that are kept, for form letters are compared with the same few again and
# again: 32 MB.
_KEPT: Final = 4_000_000
_TOLD_EVERY: Final = 512
# More than there are places.
_PLACES: Final = 1 << 32
MANY_ALIKE: Final = (
    f"have more texts like them than are compared ({_COMPARED} in a band, the likeliest {_WHOLE} "
    "whole), and none of these is near; one of the others may be"
)

_Words: TypeAlias = NDArray[np.uint64]
_Places: TypeAlias = NDArray[np.int64]


class Texts(Protocol):
    """Texts that can be read one after another, and again by their place."""

    def __iter__(self) -> Iterator[str]: ...

    def __getitem__(self, place: int, /) -> str: ...


def _mixed(words: _Words) -> _Words:
    """Every bit of a word depends on all of it (Steele et al. 2014, SplitMix64)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: _Words = words ^ (words >> np.uint64(31))
    return mixed


# Odd, so that each is a permutation of the 64-bit words.
_FACTORS: Final = _mixed(np.arange(1, _HASHES + 1, dtype=np.uint64)) | np.uint64(1)
_BAND_FACTORS: Final = _mixed(np.arange(101, 101 + ROWS, dtype=np.uint64)) | np.uint64(1)


def signatures(texts: Iterable[str]) -> NDArray[np.uint32]:
    """(texts, 60) uint32: the minima of every text. A text shorter than a window is one window."""
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
    """(texts, 12): one word a band."""
    banded = found.reshape(len(found), BANDS, ROWS).astype(np.uint64)
    return _mixed((banded * _BAND_FACTORS).sum(axis=2, dtype=np.uint64))


def _windows(text: str) -> _Words:
    """The different windows of a text, each as the number that its eight bytes are."""
    letters = np.frombuffer(_plain(text), np.uint8)
    places = np.lib.stride_tricks.sliding_window_view(letters, _WINDOW)
    words = np.sort(np.ascontiguousarray(places).view(np.uint64).ravel())
    return words[_first_of_each(words)]


def _first_of_each(ordered: NDArray[Any]) -> NDArray[np.bool_]:
    """Where each of several equal numbers in a row begins."""
    first = np.ones(len(ordered), bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return first


def _index(windows: _Words, others: _Words) -> float:
    """The Jaccard index of two sets of windows, each in order."""
    places = np.searchsorted(others, windows)
    shared = int(np.count_nonzero(others.take(places, mode="clip") == windows))
    return shared / (len(windows) + len(others) - shared)


class NearTexts:
    """Finds near duplicates of the texts that it was made of.

    cut: texts so far with more candidates than are compared, and none near among these.
    """

    def __init__(self, texts: Texts, *, told: Callable[[int], None] = lambda _: None) -> None:
        """texts: named by their place; the first `MAX_INDEXED` are taken. They are read again.
        told: gets how many are taken."""
        self._texts = texts
        self.cut = 0
        self._kept: dict[int, _Words] = {}
        self._kept_windows = 0
        found = signatures(_counted(islice(texts, MAX_INDEXED), told))
        bands = _bands(found)
        # The last byte of a minimum tells two apart but for one pair in 256.
        self._minima = found.astype(np.uint8)
        self._order = np.argsort(bands, axis=0, kind="stable").astype(np.uint32)
        # By columns, which are searched one by one.
        self._bands = np.asfortranarray(np.take_along_axis(bands, self._order, axis=0))

    def __len__(self) -> int:
        return len(self._minima)

    def find(self, texts: Sequence[str]) -> list[int | None]:
        """For each text, the place of one of those indexed that is near it; None where none is.

        The likeliest are compared first. Every run says the same.
        """
        return self._first_near(texts, own=None)

    def earlier(self, first: int, texts: Sequence[str]) -> list[int | None]:
        """Likewise, of indexed texts themselves: one that stands before each.

        Args: first: the place of texts[0]; the others follow it.
        """
        return self._first_near(texts, own=first)

    def _first_near(self, texts: Sequence[str], *, own: int | None) -> list[int | None]:
        near: list[int | None] = [None] * len(texts)
        if not len(self._minima) or not texts:
            return near
        text, place, cut = self._candidates(texts, own=own)
        ends = np.searchsorted(text, np.arange(len(texts) + 1))
        for at, (start, end) in enumerate(pairwise(ends)):
            if start == end:
                continue
            windows = _windows(texts[at])
            for other in map(int, place[start : min(end, start + _WHOLE)]):
                if _index(windows, self._windows_of(other)) >= SAME:
                    near[at] = other
                    break
            else:
                self.cut += int(cut[at] or end - start > _WHOLE)
        return near

    def _windows_of(self, place: int) -> _Words:
        found = self._kept.get(place)
        if found is None:
            found = _windows(self._texts[place])
            if self._kept_windows + len(found) > _KEPT:
                self._kept.clear()
                self._kept_windows = 0
            self._kept[place] = found
            self._kept_windows += len(found)
        return found

    def _candidates(
        self, texts: Sequence[str], *, own: int | None
    ) -> tuple[_Places, _Places, NDArray[np.bool_]]:
        """Pairs of text and place: by text, and then those with the most equal minima first; and
        which texts have more in a band than are compared."""
        found = signatures(texts)
        bands, minima = _bands(found), found.astype(np.uint8)
        cut = np.zeros(len(texts), bool)
        pairs = []
        for band in range(BANDS):
            pair, more = self._in_band(band, bands[:, band], own)
            pairs.append(pair)
            cut |= more
        # What agrees in several bands stands there several times.
        every = np.sort(np.concatenate(pairs))
        text, place = np.divmod(every[_first_of_each(every)], _PLACES)
        equal = (self._minima[place] == minima[text]).sum(axis=1)
        likely = equal >= _LEAST_EQUAL
        text, place, equal = text[likely], place[likely], equal[likely]
        # One number to sort by: text, most equal minima, place.
        order = np.argsort((text * (_HASHES + 1) + _HASHES - equal) * _PLACES + place)
        return text[order], place[order], cut

    def _in_band(
        self, band: int, wanted: _Words, own: int | None
    ) -> tuple[_Places, NDArray[np.bool_]]:
        """Pairs as one number each, and for each text whether there are more."""
        known = self._bands[:, band]
        start = np.searchsorted(known, wanted, side="left")
        there = np.searchsorted(known, wanted, side="right") - start
        counts = np.minimum(there, _COMPARED)
        text = np.repeat(np.arange(len(wanted)), counts)
        step = np.arange(len(text)) - np.repeat(np.cumsum(counts) - counts, counts)
        place = self._order[start[text] + step, band].astype(np.int64)
        if own is not None:
            # Within a band places stand in their order, so these are the earliest.
            before = place < text + own
            text, place = text[before], place[before]
        return text * _PLACES + place, there > _COMPARED


def _counted(texts: Iterator[str], told: Callable[[int], None]) -> Iterator[str]:
    for done, text in enumerate(texts, start=1):
        yield text
        if done % _TOLD_EVERY == 0:
            told(done)
