"""Masks: they cancel, they are what the specification says, and bad keys are refused."""

from __future__ import annotations

import hashlib
import hmac
import pickle

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from scipy.stats import chi2

from lada_secure.encryption.masks import MaskKey, masked, pairwise_mask
from lada_secure.encryption.parameters import aggregation_parameters
from lada_secure.errors import LocalProtocolError, ParameterError, PeerError

CONTEXT = b'{"attempt":0,"purpose":"statistics","round":1}'


def roster(sites: int) -> dict[str, MaskKey]:
    return {f"site-{index:02d}": MaskKey.generate() for index in range(sites)}


def mask_of(
    keys: dict[str, MaskKey], name: str, *, length: int, modulus: int, context: bytes = CONTEXT
) -> np.ndarray:
    peers = {other: key.public_bytes for other, key in keys.items() if other != name}
    return pairwise_mask(keys[name], name, peers, context=context, length=length, modulus=modulus)


@pytest.mark.parametrize("sum_bound", [10, 2**18 - 1, 2**28])
@pytest.mark.parametrize(("sites", "length"), [(2, 1), (3, 4097), (10, 20_000)])
def test_the_masks_of_a_roster_add_up_to_zero(sites: int, length: int, sum_bound: int) -> None:
    modulus = aggregation_parameters(length=length, sum_bound=sum_bound).plain_modulus
    keys = roster(sites)
    masks = [mask_of(keys, name, length=length, modulus=modulus) for name in keys]
    assert all(mask.dtype == np.uint64 and int(mask.max()) < modulus for mask in masks)
    assert not (np.sum(masks, axis=0, dtype=object) % modulus).any()


def test_without_one_site_the_masks_do_not_cancel() -> None:
    keys = roster(4)
    masks = [mask_of(keys, name, length=500, modulus=40961) for name in keys]
    left = np.sum(masks[1:], axis=0, dtype=np.int64) % 40961
    assert np.count_nonzero(left) > 400


@pytest.mark.parametrize("modulus", [40961, 1073692673, 2**32, 2199023190017])
def test_a_mask_is_what_the_specification_says(modulus: int) -> None:
    """An independent, slow reading of the text: HKDF by hand, one word at a time."""
    length, first, second = 700, MaskKey.generate(), MaskKey.generate()
    secret = X25519PrivateKey.from_private_bytes(first.to_secret_bytes()).exchange(
        X25519PublicKey.from_public_bytes(second.public_bytes)
    )
    info = b"lada/2/pairwise-mask" + length.to_bytes(8, "big") + modulus.to_bytes(8, "big")
    for part in (CONTEXT, b"a", first.public_bytes, b"b", second.public_bytes):
        info += len(part).to_bytes(8, "big") + part
    prk = hmac.new(bytes(32), secret, hashlib.sha256).digest()
    key = hmac.new(prk, info + b"\x01", hashlib.sha256).digest()
    stream = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()
    size = 4 if modulus <= 2**32 else 8
    expected: list[int] = []
    while len(expected) < length:
        word = int.from_bytes(stream.update(bytes(size)), "little")
        word %= 1 << (modulus - 1).bit_length()
        if word < modulus:
            expected.append(word)
    made = pairwise_mask(
        first, "a", {"b": second.public_bytes}, context=CONTEXT, length=length, modulus=modulus
    )
    assert made.tolist() == expected
    other = pairwise_mask(
        second, "b", {"a": first.public_bytes}, context=CONTEXT, length=length, modulus=modulus
    )
    assert other.tolist() == [-word % modulus for word in expected]


def test_masks_under_two_contexts_differ_almost_everywhere() -> None:
    keys = roster(3)
    one = mask_of(keys, "site-00", length=1000, modulus=40961)
    again = mask_of(keys, "site-00", length=1000, modulus=40961)
    other = mask_of(keys, "site-00", length=1000, modulus=40961, context=CONTEXT + b" ")
    assert (one == again).all()
    assert np.count_nonzero(one != other) > 990


@pytest.mark.parametrize("modulus", [40961, 1073692673])
def test_mask_entries_are_uniform(modulus: int) -> None:
    """Chi-square over 64 bins, n = 200,000, alpha = 1e-6; a bias of 5% in one bin is caught.

    At t = 40961 a remainder instead of rejection would put 1.6 times the weight on low values.
    """
    alpha, bins, length = 1e-6, 64, 200_000
    mask = mask_of(roster(3), "site-01", length=length, modulus=modulus)
    edges = [modulus * index // bins for index in range(bins + 1)]
    counts, _ = np.histogram(mask, bins=edges)
    expected = length * np.diff(edges) / modulus
    statistic = float((((counts - expected) ** 2) / expected).sum())
    assert statistic < chi2.ppf(1 - alpha, bins - 1)


def test_a_key_of_small_order_is_refused() -> None:
    for low_order in (bytes(32), (1).to_bytes(32, "little")):
        with pytest.raises(PeerError, match="not a usable") as caught:
            pairwise_mask(
                MaskKey.generate(), "a", {"b": low_order}, context=b"x", length=1, modulus=11
            )
        assert caught.value.reason == "bad_mask_key"
        assert caught.value.peer == "b"


def test_a_key_of_the_wrong_size_is_refused() -> None:
    with pytest.raises(PeerError, match="31 bytes"):
        pairwise_mask(MaskKey.generate(), "a", {"b": bytes(31)}, context=b"x", length=1, modulus=9)


def test_one_key_under_two_names_is_refused() -> None:
    own, shared = MaskKey.generate(), MaskKey.generate().public_bytes
    for peers in ({"b": shared, "c": shared}, {"b": own.public_bytes}):
        with pytest.raises(PeerError, match="equals that of"):
            pairwise_mask(own, "a", peers, context=b"x", length=1, modulus=9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peers": {}}, "without any mask"),
        ({"own_id": "b"}, "among the peers"),
        ({"own_id": "Not An Id"}, "does not match"),
        ({"length": 0}, "length"),
        ({"length": 1_000_001}, "length"),
        ({"modulus": 1}, "modulus"),
        ({"modulus": 2**48}, "modulus"),
        ({"context": b""}, "context"),
    ],
)
def test_bad_arguments_are_refused(change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {
        "own": MaskKey.generate(),
        "own_id": "a",
        "peers": {"b": MaskKey.generate().public_bytes},
        "context": b"x",
        "length": 3,
        "modulus": 40961,
    }
    arguments.update(change)
    with pytest.raises(ParameterError, match=message):
        pairwise_mask(
            arguments.pop("own"),  # type: ignore[arg-type]
            arguments.pop("own_id"),  # type: ignore[arg-type]
            arguments.pop("peers"),  # type: ignore[arg-type]
            **arguments,  # type: ignore[arg-type]
        )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([], dtype=np.int64), "3 entries"),
        (np.zeros((2, 2), dtype=np.int64), "one dimension"),
        (np.array([1.0, np.nan, 2.0]), "whole numbers"),
        (np.array([1.0, np.inf, 2.0]), "whole numbers"),
        (np.array([1.0, 2.0, 3.0]), "whole numbers"),
        (np.array([True, False, True]), "whole numbers"),
        (np.array([0, 101, 0]), r"entries in \[-100, 100\]"),
        (np.array([0, -101, 0]), r"entries in \[-100, 100\]"),
        (np.array([0, np.iinfo(np.int64).min, 0]), r"entries in \[-100, 100\]"),
        (np.array([0, 2**64 - 1, 0], dtype=np.uint64), r"entries in \[-100, 100\]"),
        (np.array([1, 2]), "3 entries"),
    ],
)
def test_a_vector_that_breaks_its_declaration_never_leaves(
    values: np.ndarray, message: str
) -> None:
    with pytest.raises(ParameterError, match=message):
        masked(values, np.zeros(3, dtype=np.uint64), bound=100, modulus=40961)


def test_a_bound_that_wraps_is_refused() -> None:
    with pytest.raises(ParameterError, match="half of"):
        masked(np.array([1]), np.zeros(1, dtype=np.uint64), bound=20_480, modulus=40961)


def test_the_largest_entries_survive_masking() -> None:
    mask = np.array([40960, 0, 40960], dtype=np.uint64)
    hidden = masked(np.array([100, -100, -100]), mask, bound=100, modulus=40961)
    assert ((hidden.astype(np.int64) - mask.astype(np.int64)) % 40961).tolist() == [
        100,
        40861,
        40861,
    ]


def test_a_mask_key_shows_and_pickles_nothing() -> None:
    key = MaskKey.generate()
    assert key.to_secret_bytes().hex() not in repr(key)
    assert repr(key) == "MaskKey()"
    with pytest.raises(LocalProtocolError):
        pickle.dumps(key)
    copy = MaskKey.from_secret_bytes(key.to_secret_bytes())
    assert copy.public_bytes == key.public_bytes
    with pytest.raises(ParameterError):
        MaskKey.from_secret_bytes(b"short")
