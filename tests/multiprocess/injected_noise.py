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
    """The generator of the release that is being computed."""

    def __init__(self, seed):
        self._seed = seed
        self._generator = None
        self._release = LedgerBook.release

    def inject(self, replace=setattr):
        """Replace every source of privacy noise. Args: replace: as `monkeypatch.setattr`."""
        replace(LedgerBook, "release", lambda book, spec, **how: self._seeded(book, spec, **how))
        replace(noise, "system_words", self._words)
        replace(batching, "system_words", self._words)
        replace(noised_vectors, "discrete_gaussian_vector", self._noised)

    def _seeded(self, book, spec, *, compute, **how):
        name = f"{self._seed}/{book.head().site}/{spec.round_id}/{spec.purpose}/{spec.chunk}"
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest())

        def computed(paid):
            self._generator = np.random.default_rng(seed)
            try:
                return compute(paid)
            finally:
                self._generator = None

        return self._release(book, spec, compute=computed, **how)

    def _drawing(self):
        assert self._generator is not None, "noise is drawn outside of a release"
        return self._generator

    def _words(self, count):
        return self._drawing().integers(2**64, size=count, dtype=np.uint64)

    def _noised(self, values, *, sigma):
        return values + np.rint(self._drawing().normal(0.0, sigma, len(values))).astype(np.int64)


if __name__ == "__main__":
    from lada_lab.mock.many_sites import run_sites

    InjectedNoise(sys.argv[1]).inject()
    sys.exit(run_sites([Path(settings) for settings in sys.argv[2:]]))
