"""Worker that makes keys and decrypts, for `aggregate_key` and `scoring_key` alone.

It keeps nothing: a secret key comes with each request, so a worker that died took none along and
a restart needs no state. Entry: `python -m` with a byte limit.

Operations (numbers, then byte strings; replies are byte strings):

aggregate_generate: (q, t) -> public key (2, N) u64, secret key (N,) u64.
open: (q, t, width), secret key, packed ciphertexts
    -> per chunk its entries i64, centred modulo t.
scoring_generate: (q) -> secret key (N,) u64.
scoring_encrypt: (q, query scale bits, width), secret key, utilities (cells,) f64
    -> packed polynomials, seeds.
scoring_decrypt: (q, product scale bits, width), secret key, packed ciphertexts
    -> scores f64, all slots.
"""

from __future__ import annotations

import struct
from typing import Final

import numpy as np
from tenseal import sealapi

from lada_secure.encryption.native import aggregation_ring, scoring_ring
from lada_secure.encryption.parameters import POLY_MODULUS_DEGREE
from lada_secure.encryption.parsing import pack, unpack
from lada_secure.encryption.workers.frames import Part
from lada_secure.encryption.workers.loop import run

_ENTRIES: Final = struct.Struct(f"<{POLY_MODULUS_DEGREE}q")


def _aggregate_generate(which: list[int]) -> list[Part]:
    ring = aggregation_ring(*which)
    generator = sealapi.KeyGenerator(ring.context)
    public = sealapi.PublicKey()
    generator.create_public_key(public)
    secret = ring.secret_key_coefficients(generator.secret_key())
    return [ring.public_key_coefficients(public).tobytes(), secret.tobytes()]


def _open(which: list[int], secret: bytes, packed: bytes) -> list[Part]:
    prime, plain_modulus, width = which
    ring = aggregation_ring(prime, plain_modulus)
    decryptor = sealapi.Decryptor(ring.context, ring.secret_key(secret))
    encoder = sealapi.BatchEncoder(ring.context)
    plain = sealapi.Plaintext()
    opened: list[Part] = []
    for chunk in unpack(packed, width).reshape(-1, 2, POLY_MODULUS_DEGREE):
        decryptor.decrypt(ring.ciphertext(chunk, ntt=False, scale=1.0), plain)
        # Twice as fast as filling an array from the list.
        opened.append(_ENTRIES.pack(*encoder.decode_int64(plain)))
    return opened


def _scoring_generate(which: list[int]) -> list[Part]:
    ring = scoring_ring(*which)
    secret = sealapi.KeyGenerator(ring.context).secret_key()
    return [ring.secret_key_coefficients(secret).tobytes()]


def _scoring_encrypt(which: list[int], secret: bytes, utilities: bytes) -> list[Part]:
    prime, scale_bits, width = which
    ring = scoring_ring(prime)
    encryptor = sealapi.Encryptor(ring.context, ring.secret_key(secret))
    encoder = sealapi.CKKSEncoder(ring.context)
    plain = sealapi.Plaintext()
    polynomials, seeds = b"", b""
    for utility in np.frombuffer(utilities, dtype="<f8").tolist():
        # The same utility in every slot: each slot belongs to another pool sample.
        encoder.encode(utility, 2.0**scale_bits, plain)
        polynomial, seed = ring.seeded_coefficients(encryptor.encrypt_symmetric(plain))
        polynomials += pack(polynomial, width)
        seeds += seed
    return [polynomials, seeds]


def _scoring_decrypt(which: list[int], secret: bytes, packed: bytes) -> list[Part]:
    prime, scale_bits, width = which
    ring = scoring_ring(prime)
    decryptor = sealapi.Decryptor(ring.context, ring.secret_key(secret))
    encoder = sealapi.CKKSEncoder(ring.context)
    plain = sealapi.Plaintext()
    blocks = unpack(packed, width).reshape(-1, 2, POLY_MODULUS_DEGREE)
    scores = np.empty((len(blocks), POLY_MODULUS_DEGREE // 2), dtype="<f8")
    for row, block in zip(scores, blocks, strict=True):
        decryptor.decrypt(ring.ciphertext(block, ntt=True, scale=2.0**scale_bits), plain)
        row[:] = encoder.decode_double(plain)
    return [scores.tobytes()]


if __name__ == "__main__":
    run(
        {
            "aggregate_generate": _aggregate_generate,
            "open": _open,
            "scoring_generate": _scoring_generate,
            "scoring_encrypt": _scoring_encrypt,
            "scoring_decrypt": _scoring_decrypt,
        }
    )
