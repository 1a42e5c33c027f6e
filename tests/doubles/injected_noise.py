"""Noise that is the same wherever one release is computed: for tests, and for nothing else.

Privacy noise and sampling come from the operating system, and no setting can change that. Here the
functions that draw them are replaced from outside. What a release draws depends on a seed and on
its site, round, purpose and chunk alone, not on the process or on what was computed before.

Run as a program with a seed and settings files, it runs sites as `lada_lab.mock.many_sites` does.
"""

import hashlib
import sys
from pathlib import Path

import numpy as np

from lada_secure.dpsgd import batching, noise
from lada_secure.privacy.ledger.book import LedgerBook
from lada_secure.privacy.release import noised_vectors


class InjectedNoise:
    """One generator per release, from what reserves its budget to what keeps its output."""

    def __init__(self, seed):
        self._seed = seed
        self._generator = None

    def inject(self, replace=setattr):
        """Replace every source of privacy noise. Args: replace: as `monkeypatch.setattr`."""
        reserve, keep = LedgerBook.reserve, LedgerBook.keep

        def reserved(book, spec):
            release = (self._seed, book.identity.site, spec.round_id, spec.purpose, spec.chunk)
            digest = hashlib.sha256(repr(release).encode()).digest()
            self._generator = np.random.default_rng(int.from_bytes(digest))
            return reserve(book, spec)

        def kept(book, paid, output):
            self._generator = None
            return keep(book, paid, output)

        replace(LedgerBook, "reserve", reserved)
        replace(LedgerBook, "keep", kept)
        replace(noise, "system_words", self._words)
        replace(batching, "system_words", self._words)
        replace(noised_vectors, "discrete_gaussian_vector", self._noised)

    def _drawing(self):
        assert self._generator is not None, "noise is drawn outside of a release"
        return self._generator

    def _words(self, count):
        return self._drawing().integers(2**64, size=count, dtype=np.uint64)

    def _noised(self, values, *, sigma):
        return values + np.rint(self._drawing().normal(0.0, sigma, len(values))).astype(np.int64)


if __name__ == "__main__":
    from lada_lab.mock.many_sites import run_sites

    InjectedNoise(int(sys.argv[1])).inject()
    sys.exit(run_sites([Path(settings) for settings in sys.argv[2:]]))
