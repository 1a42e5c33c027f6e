"""How large the noise of a sum can be: what the table of ciphertext primes rests on."""

from __future__ import annotations

import math

from lada_secure.encryption.parameters import POLY_MODULUS_DEGREE


def noise_bound(sites: int) -> int:
    """Largest noise coefficient of a sum of fresh BFV encryptions, but for chance 2^-100.

    The noise of one encryption is e u + e1 + e2 s (Fan and Vercauteren 2012, section 3) plus the
    encoding's rounding, with u and s ternary and every e from SEAL's centred binomial
    distribution: 42 fair signs of 1/2, variance 10.5. Hoeffding, given the public key's own e
    (sum of squares below 12.5 N) and s: the sum over `sites` is sub-Gaussian with proxy
    sites * (N * (4 * 12.5 + 42) + 42), and ln(2 * 2^100) < 70.1. One more per site pays for e1's
    and the encoding's rounding.
    """
    proxy = sites * (POLY_MODULUS_DEGREE * (4 * 12.5 + 42) + 42)
    return math.ceil(math.sqrt(proxy * 70.1 / 2)) + sites
