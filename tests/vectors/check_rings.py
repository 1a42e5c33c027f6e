"""The checker's BFV and CKKS, by integer arithmetic (sections 7.3 to 7.5, 8)."""

from __future__ import annotations

import base64
import cmath
from typing import Any

from check_numbers import (
    SCORING_PRIME,
    N,
    masks_of,
    opening,
    scoring,
)
from check_text import (
    need,
    sha,
)

# --- sections 7.3 to 7.5: BFV by hand ---------------------------------------------------------


def minimal_root(prime: int) -> int:
    """The smallest primitive 2N-th root of unity, as SEAL takes it."""
    power = (prime - 1) // (2 * N)
    root = next(
        one for base in range(2, 1000) if pow(one := pow(base, power, prime), N, prime) == prime - 1
    )
    square, best = root * root % prime, root
    for _ in range(N):
        root = root * square % prime
        best = min(best, root)
    return best


def from_ntt(values: list[int], prime: int) -> list[int]:
    """Coefficients of a polynomial in SEAL's NTT form: entry j is its value at
    root^(2 rev(j) + 1), rev being the reversal of 12 bits."""
    psi = minimal_root(prime)
    points = [values[int(f"{k:012b}"[::-1], 2)] for k in range(N)]
    plain = _cyclic(points, pow(psi, -2, prime), prime)
    scale, twist = pow(N, -1, prime), pow(psi, -1, prime)
    found, power = [], scale
    for one in plain:
        found.append(one * power % prime)
        power = power * twist % prime
    return found


def _cyclic(values: list[int], omega: int, prime: int) -> list[int]:
    if len(values) == 1:
        return values
    even = _cyclic(values[::2], omega * omega % prime, prime)
    odd = _cyclic(values[1::2], omega * omega % prime, prime)
    power, half = 1, len(values) // 2
    found = [0] * len(values)
    for k in range(half):
        term = power * odd[k] % prime
        found[k] = (even[k] + term) % prime
        found[k + half] = (even[k] - term) % prime
        power = power * omega % prime
    return found


def times(one: list[int], other: list[int], prime: int) -> list[int]:
    """Product modulo X^N + 1, through one multiplication of large integers."""
    width = 20
    left = int.from_bytes(b"".join(a.to_bytes(width, "little") for a in one), "little")
    right = int.from_bytes(b"".join(a.to_bytes(width, "little") for a in other), "little")
    raw = (left * right).to_bytes(2 * N * width, "little")
    wide = [int.from_bytes(raw[at : at + width], "little") for at in range(0, len(raw), width)]
    return [(wide[at] - wide[at + N]) % prime for at in range(N)]


def centred(value: int, modulus: int) -> int:
    """In (-m/2, m/2]."""
    value %= modulus
    return value - modulus if value > modulus // 2 else value


def unframe(raw: bytes, magic: bytes, numbers: dict[str, Any]) -> list[list[int]]:
    """The two polynomials behind a header; one chunk."""
    width = numbers["coefficient_bytes"]
    need(len(raw) == 36 + 2 * N * width, "length of a ciphertext or key")
    need(raw[:4] == magic and raw[4:36].hex() == numbers["digest"], "header")
    flat = [int.from_bytes(raw[at : at + width], "little") for at in range(36, len(raw), width)]
    need(max(flat) < numbers["coeff_modulus"], "a coefficient is not below q")
    return [flat[:N], flat[N:]]


def decrypt(both: list[list[int]], secret: list[int], q: int, t: int) -> list[int]:
    """All N slots of a BFV ciphertext; refuses noise above a quarter of what would be wrong."""
    product = times(both[1], secret, q)
    phase = [(a + b) % q for a, b in zip(both[0], product, strict=True)]
    plain = [(2 * t * one + q) // (2 * q) % t for one in phase]
    for one, entry in zip(phase, plain, strict=True):
        need(abs(centred(t * one - q * entry, q * t)) * 8 < q, "too much noise")
    return plain


def slots(plain: list[int], t: int, count: int) -> list[int]:
    """Entries 0 .. count - 1 of SEAL's batch encoding: values at root^(3^i)."""
    root = minimal_root(t)
    found = []
    for entry in range(count):
        point = pow(root, pow(3, entry, 2 * N), t)
        value = 0
        for coefficient in reversed(plain):
            value = (value * point + coefficient) % t
        found.append(value)
    return found


def check_sealed(vectors: Any) -> None:
    """Key pair, contributions, their sum, and what it opens to."""
    numbers = vectors["parameters"]
    need(numbers == opening(numbers["length"], numbers["sum_bound"]), "parameters")
    q, t, n = numbers["coeff_modulus"], numbers["plain_modulus"], numbers["length"]
    raw = base64.b64decode(vectors["secret_key"], validate=True)
    need(len(raw) == 8 * N, "length of the secret key")
    ntt = [int.from_bytes(raw[at : at + 8], "little") for at in range(0, len(raw), 8)]
    secret = from_ntt(ntt, q)
    need(set(secret) <= {0, 1, q - 1}, "the secret key is not ternary")
    public = unframe(base64.b64decode(vectors["public_key"], validate=True), b"LPK1", numbers)
    b, a = (from_ntt(one, q) for one in public)
    noise = [centred(x + y, q) for x, y in zip(b, times(a, secret, q), strict=True)]
    need(max(abs(one) for one in noise) <= 21, "the public key does not belong to the secret")
    private = {site: bytes.fromhex(one) for site, one in vectors["private_mask_keys"].items()}
    masks = masks_of(private, vectors["context"].encode("ascii"), n, t)
    total = [[0] * N, [0] * N]
    need(set(vectors["contributions"]) == set(vectors["vectors"]) == set(masks), "sites")
    for site, text in vectors["contributions"].items():
        both = unframe(base64.b64decode(text, validate=True), b"LSV1", numbers)
        found = slots(decrypt(both, secret, q, t), t, n + 2)
        hidden = [(v + m) % t for v, m in zip(vectors["vectors"][site], masks[site], strict=True)]
        need(found == [*hidden, 0, 0], f"contribution of {site}")
        total = [
            [(x + y) % q for x, y in zip(old, new, strict=True)]
            for old, new in zip(total, both, strict=True)
        ]
    width = numbers["coefficient_bytes"]
    body = b"".join(one.to_bytes(width, "little") for part in total for one in part)
    framed = b"LSV1" + bytes.fromhex(numbers["digest"]) + body
    need(sha(framed) == vectors["sum_sha256"], "bytes of the sum")
    opened = [centred(one, t) for one in slots(decrypt(total, secret, q, t), t, n)]
    need(opened == vectors["opened"], "opened sum")
    sums = [sum(column) for column in zip(*vectors["vectors"].values(), strict=True)]
    need(opened == sums, "the opened sum is not the sum of the vectors")


# --- section 8: CKKS by hand ------------------------------------------------------------------


_IV = (
    0x6A09E667F3BCC908, 0xBB67AE8584CAA73B, 0x3C6EF372FE94F82B, 0xA54FF53A5F1D36F1,
    0x510E527FADE682D1, 0x9B05688C2B3E6C1F, 0x1F83D9ABFB41BD6B, 0x5BE0CD19137E2179,
)  # fmt: skip
_SIGMA = (
    "0123456789abcdef", "ea489fd61c02b753", "b8c052fdae367194", "7931dcbe265a40f8",
    "905724afe1bc683d", "2c6a0b834d75fe19", "c51fed4a0763928b", "db7ec13950f4862a",
    "6fe9b308c2d714a5", "a2847615fb9e3cd0", "0123456789abcdef", "ea489fd61c02b753",
)  # fmt: skip
_ROUNDS = tuple(tuple(int(digit, 16) for digit in row) for row in _SIGMA)
_LANES = (
    (0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15),
    (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14),
)  # fmt: skip
_MASK = 2**64 - 1


def blake2b(parameters: bytes, key: bytes, message: bytes) -> bytes:
    """BLAKE2b (RFC 7693) with any parameter block; `hashlib` refuses the depth of 0 needed here."""
    words = [int.from_bytes(parameters[at : at + 8], "little") for at in range(0, 64, 8)]
    state = [one ^ two for one, two in zip(_IV, words, strict=True)]
    data = key.ljust(128, b"\0") + message if key else message
    blocks = [data[at : at + 128] for at in range(0, len(data), 128)] or [b""]
    done = 0
    for block in blocks[:-1]:
        done += 128
        state = _compressed(state, block, done, last=False)
    state = _compressed(state, blocks[-1], done + len(blocks[-1]), last=True)
    return b"".join(one.to_bytes(8, "little") for one in state)[: parameters[0]]


def _compressed(state: list[int], block: bytes, done: int, *, last: bool) -> list[int]:
    block = block.ljust(128, b"\0")
    m = [int.from_bytes(block[at : at + 8], "little") for at in range(0, 128, 8)]
    v = [*state, *_IV]
    v[12] ^= done
    v[14] ^= _MASK if last else 0
    for row in _ROUNDS:
        for lane, (a, b, c, d) in enumerate(_LANES):
            v[a] = (v[a] + v[b] + m[row[2 * lane]]) & _MASK
            v[d] = _right(v[d] ^ v[a], 32)
            v[c] = (v[c] + v[d]) & _MASK
            v[b] = _right(v[b] ^ v[c], 24)
            v[a] = (v[a] + v[b] + m[row[2 * lane + 1]]) & _MASK
            v[d] = _right(v[d] ^ v[a], 16)
            v[c] = (v[c] + v[d]) & _MASK
            v[b] = _right(v[b] ^ v[c], 63)
    return [one ^ v[at] ^ v[at + 8] for at, one in enumerate(state)]


def _right(word: int, by: int) -> int:
    return (word >> by | word << (64 - by)) & _MASK


def blake2xb(key: bytes, message: bytes, length: int) -> bytes:
    """BLAKE2Xb (Aumasson et al. 2016) with a key of up to 64 bytes."""
    size = length.to_bytes(4, "little")
    root = blake2b(bytes((64, len(key), 1, 1)) + bytes(8) + size + bytes(48), key, message)
    found = b""
    for index in range(-(-length // 64)):
        part = bytes((min(64, length - 64 * index), 0, 0, 0)) + (64).to_bytes(4, "little")
        part += index.to_bytes(4, "little") + size + bytes((0, 64)) + bytes(46)
        found += blake2b(part, b"", root)
    return found


def expanded(seed: bytes, prime: int) -> list[int]:
    """The uniform polynomial that a seed names, in NTT form."""
    stream, counter = bytearray(), 0

    def take(size: int) -> bytes:
        nonlocal counter
        while len(stream) < size:
            stream.extend(blake2xb(seed, counter.to_bytes(8, "little"), 4096))
            counter += 1
        taken = bytes(stream[:size])
        del stream[:size]
        return taken

    raw = take(8 * N)
    words = [int.from_bytes(raw[at : at + 8], "little") for at in range(0, len(raw), 8)]
    largest = 2**64 - 1
    limit = largest - largest % prime - 1
    found = []
    for word in words:
        kept = word
        while kept >= limit:
            kept = int.from_bytes(take(8), "little")
        found.append(kept % prime)
    return found


def phase(c0: list[int], c1: list[int], secret: list[int], prime: int) -> list[int]:
    """Centred coefficients of c0 + c1 s, all given in NTT form."""
    values = [(a + b * s) % prime for a, b, s in zip(c0, c1, secret, strict=True)]
    return [centred(one, prime) for one in from_ntt(values, prime)]


def ckks_slot(coefficients: list[int], slot: int, scale: float) -> float:
    """Slot i of SEAL's CKKS encoding: the value at exp(pi i 3^i / N), real here."""
    step = cmath.exp(1j * cmath.pi * pow(3, slot, 2 * N) / N)
    value = 0j
    for coefficient in reversed(coefficients):
        value = value * step + coefficient
    return value.real / scale


def seven_bytes(raw: bytes, prime: int) -> list[int]:
    """Coefficients of 7 bytes each."""
    found = [int.from_bytes(raw[at : at + 7], "little") for at in range(0, len(raw), 7)]
    need(max(found) < prime, "a coefficient is not below Q")
    return found


def check_scores(vectors: Any) -> None:
    """The query holds the utilities, the scores their products with the matrix."""
    cells, bound, prime = vectors["cells"], vectors["row_bound"], SCORING_PRIME
    numbers = scoring(cells, bound)
    need(numbers["digest"] == vectors["digest"], "digest")
    secret_raw = base64.b64decode(vectors["secret_key"], validate=True)
    need(len(secret_raw) == 8 * N, "length of the secret key")
    secret = [
        int.from_bytes(secret_raw[at : at + 8], "little") for at in range(0, len(secret_raw), 8)
    ]
    need(set(from_ntt(secret, prime)) <= {0, 1, prime - 1}, "the secret key is not ternary")
    query = base64.b64decode(vectors["query"], validate=True)
    need(len(query) == numbers["query_bytes"], "length of the query")
    need(query[:4] == b"LSQ1" and query[4:36].hex() == vectors["digest"], "header of the query")
    seeds = query[36 + cells * 7 * N :]
    scale = 2.0 ** numbers["query_scale_bits"]
    need(len(vectors["utilities"]) == cells, "one utility per cell")
    for cell, utility in enumerate(vectors["utilities"]):
        c0 = seven_bytes(query[36 + cell * 7 * N : 36 + (cell + 1) * 7 * N], prime)
        c1 = expanded(seeds[64 * cell : 64 * (cell + 1)], prime)
        constant, *rest = phase(c0, c1, secret, prime)
        # All slots alike: a constant. Fresh noise is at most 21 a coefficient.
        need(abs(constant - utility * scale) <= 22, f"utility of cell {cell}")
        need(max(abs(one) for one in rest) <= 21, f"noise of cell {cell}")
    _check_products(vectors, numbers, secret)


def _check_products(vectors: Any, numbers: dict[str, Any], secret: list[int]) -> None:
    prime, matrix = SCORING_PRIME, vectors["matrix"]
    scores = base64.b64decode(vectors["scores"], validate=True)
    need(1 <= len(matrix) <= 2048, "one block")
    need(len(scores) == 36 + 2 * 7 * N, "length of the scores")
    need(scores[:4] == b"LSS1" and scores[4:36].hex() == vectors["digest"], "header of the scores")
    both = seven_bytes(scores[36:], prime)
    coefficients = phase(both[:N], both[N:], secret, prime)
    scale = 2.0 ** (numbers["query_scale_bits"] + numbers["matrix_scale_bits"])
    need(len(vectors["decrypted"]) == len(matrix), "one score per sample")
    for sample, row in enumerate(matrix):
        need(all(0 <= one <= 1 for one in row) and sum(row) <= vectors["row_bound"], "a row")
        expected = sum(u * f for u, f in zip(vectors["utilities"], row, strict=True))
        found = ckks_slot(coefficients, sample, scale)
        need(abs(found - expected) <= 1e-4, f"score of sample {sample}")
        need(abs(found - vectors["decrypted"][sample]) <= 1e-9, f"decrypted score of {sample}")
    _check_computed_again(vectors, numbers, both)
    for slot in (len(matrix), len(matrix) + 1, 2047):
        need(abs(ckks_slot(coefficients, slot, scale)) <= 1e-4, "a slot behind the last sample")


def _check_computed_again(vectors: Any, numbers: dict[str, Any], scores: list[int]) -> None:
    """The scores from query and committed matrix alone, without the key: the auditor's check."""
    prime, cells = SCORING_PRIME, vectors["cells"]
    raw = base64.b64decode(vectors["committed"], validate=True)
    need(len(raw) == 36 + cells * 2048 * 4, "length of the matrix")
    need(raw[:4] == b"LSM1" and raw[4:36].hex() == vectors["digest"], "header of the matrix")
    query = base64.b64decode(vectors["query"], validate=True)
    total = [[0] * N, [0] * N]
    for cell in range(cells):
        own = raw[36 + 8192 * cell : 36 + 8192 * (cell + 1)]
        c = [int.from_bytes(own[at : at + 4], "little", signed=True) for at in range(0, 8192, 4)]
        # c_0 + sum of c_k (X^k - X^(N-k)): real in every slot.
        column = [*c, 0, *(-one for one in reversed(c[1:]))]
        for sample, row in enumerate(vectors["matrix"]):
            found = ckks_slot(column, sample, 2.0 ** numbers["matrix_scale_bits"])
            need(abs(found - row[cell]) <= 1e-4, f"committed entry {sample}, {cell}")
        c0 = seven_bytes(query[36 + cell * 7 * N : 36 + (cell + 1) * 7 * N], prime)
        seed = query[36 + cells * 7 * N + 64 * cell :][:64]
        for half, values in zip(total, (c0, expanded(seed, prime)), strict=True):
            product = times(from_ntt(values, prime), [one % prime for one in column], prime)
            half[:] = [(a + b) % prime for a, b in zip(half, product, strict=True)]
    for half, values in zip(total, (scores[:N], scores[N:]), strict=True):
        need(from_ntt(values, prime) == half, "scores computed again")
