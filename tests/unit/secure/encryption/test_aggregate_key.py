"""The aggregate key: what it refuses to call a sum, and how it is kept."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from noise_bound import noise_bound
from sealed_sums import add_sealed

from lada_secure.encryption.aggregate_key import AggregateKey
from lada_secure.encryption.parameters import HEADER_BYTES, aggregation_parameters
from lada_secure.encryption.sealing import parse_public_key, seal
from lada_secure.errors import LocalProtocolError, ParameterError, PeerError


def refused(opening: Any, sealed: bytes) -> str:
    with pytest.raises(PeerError) as caught:
        opening.key.open_sum(sealed)
    for vector in opening.vectors:
        assert str(int(vector[1])) not in str(caught.value).split()
    return caught.value.reason


def test_one_contribution_alone_is_no_sum(small: Any) -> None:
    assert refused(small, small.sealed[0]) == "out_of_range"


def test_a_subset_is_no_sum(small: Any) -> None:
    assert refused(small, add_sealed(small.params, small.sealed[:2])) == "out_of_range"


def test_a_contribution_counted_twice_is_no_sum(small: Any) -> None:
    assert refused(small, add_sealed(small.params, [*small.sealed, small.sealed[0]])) == (
        "out_of_range"
    )


def test_a_flipped_bit_spoils_every_entry_and_is_seen(small: Any) -> None:
    """Packing spreads one wrong coefficient over all slots, so the range shows it."""
    total = bytearray(add_sealed(small.params, small.sealed))
    # The top byte of the first coefficient: beyond the noise, still below q.
    total[HEADER_BYTES + small.params.coefficient_bytes - 1] ^= 0x40
    assert refused(small, bytes(total)) == "out_of_range"


def test_a_wrapped_value_is_seen(small: Any) -> None:
    key = parse_public_key(small.key.public_bytes, small.params)
    values = np.zeros(50, dtype=np.int64)
    values[7] = small.params.plain_modulus // 2
    assert refused(small, seal(key, small.params, values)) == "out_of_range"


@pytest.mark.parametrize(("entry", "inside"), [(3000, True), (-3000, True), (3001, False)])
def test_the_bound_itself_is_inside(small: Any, entry: int, inside: bool) -> None:
    key = parse_public_key(small.key.public_bytes, small.params)
    values = np.full(50, entry % small.params.plain_modulus)
    sealed = seal(key, small.params, values)
    if inside:
        assert set(small.key.open_sum(sealed).tolist()) == {entry}
    else:
        assert refused(small, sealed) == "out_of_range"


def test_something_behind_the_last_entry_is_seen() -> None:
    longer = aggregation_parameters(length=60, sum_bound=3000)
    key = AggregateKey.generate(longer)
    sealed = seal(parse_public_key(key.public_bytes, longer), longer, np.ones(60, dtype=np.int64))
    # The same ring and key, but a vector that should end at entry 50.
    shorter = aggregation_parameters(length=50, sum_bound=3000)
    raw = key.to_bytes()
    relabelled = AggregateKey(shorter, key.public_bytes, raw[-32 - 4096 * 8 : -32])
    with pytest.raises(PeerError, match="behind entry 50") as caught:
        relabelled.open(sealed[:4] + bytes.fromhex(shorter.digest) + sealed[HEADER_BYTES:])
    assert caught.value.reason == "out_of_range"


def test_a_key_comes_back_from_disk(small: Any) -> None:
    copy = AggregateKey.from_bytes(small.key.to_bytes())
    assert copy.public_bytes == small.key.public_bytes
    total = add_sealed(small.params, small.sealed)
    assert (copy.open_sum(total) == small.total).all()


def test_a_damaged_key_file_is_refused(small: Any) -> None:
    raw = small.key.to_bytes()
    flipped = bytearray(raw)
    flipped[len(raw) // 2] ^= 1
    for bad in (b"", raw[:-1], raw + b"x", bytes(flipped), b"x" * len(raw)):
        with pytest.raises(ParameterError, match="damaged"):
            AggregateKey.from_bytes(bad)


def test_a_key_shows_and_pickles_nothing(small: Any) -> None:
    assert repr(small.key) == f"AggregateKey(parameters={small.params})"
    with pytest.raises(LocalProtocolError):
        pickle.dumps(small.key)


def test_the_noise_of_many_sites_stays_below_the_proven_bound() -> None:
    """50 fresh encryptions, every parameter set; SEAL measures the noise budget that is left."""
    from tenseal import sealapi

    from lada_secure.encryption.native import aggregation_ring

    for sum_bound in (10, 2**18 - 1, 2**25, 2**29):
        params = aggregation_parameters(length=1, sum_bound=sum_bound)
        ring = aggregation_ring(params.coeff_modulus, params.plain_modulus)
        generator = sealapi.KeyGenerator(ring.context)
        public, encrypted, total = (
            sealapi.PublicKey(),
            sealapi.Ciphertext(),
            sealapi.Ciphertext(),
        )
        generator.create_public_key(public)
        encryptor = sealapi.Encryptor(ring.context, public)
        encoder, plain = sealapi.BatchEncoder(ring.context), sealapi.Plaintext()
        encoder.encode([params.plain_modulus - 1] * 4096, plain)
        encryptor.encrypt(plain, total)
        for _ in range(49):
            encryptor.encrypt(plain, encrypted)
            ring.evaluator.add_inplace(total, encrypted)
        decryptor = sealapi.Decryptor(ring.context, generator.secret_key())
        budget = decryptor.invariant_noise_budget(total)
        allowed = params.coeff_modulus / (2 * params.plain_modulus * noise_bound(50))
        assert 2**budget >= allowed / 2
        assert allowed > 2
