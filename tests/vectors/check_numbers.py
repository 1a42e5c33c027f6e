"""The checker's plan, parameters and masks (sections 5, 7.1, 7.2, 8)."""

from __future__ import annotations

import math
import re
from typing import Any

from check_text import (
    canonical,
    encode,
    need,
    sha,
)
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

N = 4096


# --- sections 5, 7.1, 8: plan and parameters --------------------------------------------------

MODULI = (
    (22, 1099511480321, 5),
    (30, 281474976694273, 6),
    (38, 72057594037641217, 7),
    (42, 1152921504606830593, 8),
)
SCORING_PRIME = 72057594037641217


def is_prime(candidate: int) -> bool:
    """Fermat and Miller-Rabin to fixed bases: exact below 2^64."""
    if candidate < 2:
        return False
    for base in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37):
        if candidate % base == 0:
            return candidate == base
        odd = candidate - 1
        while odd % 2 == 0:
            odd //= 2
        found = pow(base, odd, candidate)
        while odd != candidate - 1 and found not in (1, candidate - 1):
            found = found * found % candidate
            odd *= 2
        if found != candidate - 1 and odd % 2 == 0:
            return False
    return True


def opening(length: int, bound: int) -> dict[str, Any]:
    """The parameters of section 7.1."""
    bits = max(16, (4096 * bound).bit_length())
    while True:
        prime = next(
            (one for one in range((1 << bits) // 8192 * 8192 - 8191, 1, -8192) if is_prime(one)), 0
        )
        if prime >= 4096 * bound:
            break
        bits += 1
    q, width = next((q, width) for most, q, width in MODULI if prime.bit_length() <= most)
    chunks = -(-length // N)
    named = {
        "format": "lada/2/opening",
        "length": length,
        "sum_bound": bound,
        "poly_modulus_degree": N,
        "coeff_modulus": [q],
        "plain_modulus": prime,
    }
    return {
        "length": length,
        "sum_bound": bound,
        "plain_modulus": prime,
        "coeff_modulus": q,
        "coefficient_bytes": width,
        "chunks": chunks,
        "sealed_bytes": 36 + chunks * 2 * N * width,
        "public_key_bytes": 36 + 2 * N * width,
        "digest": sha(encode(named).encode("ascii")),
    }


def scoring(cells: int, bound: int) -> dict[str, Any]:
    """The parameters of section 8."""
    product = SCORING_PRIME.bit_length() - 2 - (bound - 1).bit_length()
    matrix = (product - 4) // 2
    named = {
        "format": "lada/2/scoring",
        "cells": cells,
        "row_bound": bound,
        "poly_modulus_degree": N,
        "coeff_modulus": [SCORING_PRIME],
        "query_scale_bits": product - matrix,
        "matrix_scale_bits": matrix,
    }
    return {
        "cells": cells,
        "row_bound": bound,
        "query_scale_bits": product - matrix,
        "matrix_scale_bits": matrix,
        "query_bytes": 36 + cells * (7 * N + 64),
        "scores_bytes_of_5000": 36 + 3 * 2 * 7 * N,
        "digest": sha(encode(named).encode("ascii")),
    }


def check_parameters(vectors: Any) -> None:
    """Every parameter set, derived again."""
    for one in vectors["opening"]:
        need(one == opening(one["length"], one["sum_bound"]), f"opening {one['length']}")
    for one in vectors["scoring"]:
        need(one == scoring(one["cells"], one["row_bound"]), f"scoring {one['cells']}")
    need(len(vectors["opening"]) >= 5 and len(vectors["scoring"]) >= 5, "too few sets")


def check_answers(plan: Any) -> None:
    """How questions are asked, answers read, and paths drawn: always in the bytes."""
    need(plan["answer_form"] in ("cloze", "listed", "reasoned"), "answer form")
    rule, tolerance = plan["verifier"]["rule"], plan["verifier"]["tolerance"]
    need(rule in ("exact", "normalised", "numeric"), "verifier")
    need(isinstance(tolerance, float) and tolerance >= 0.0, "tolerance")
    need(tolerance == 0.0 or rule == "numeric", "a tolerance of another rule")
    paths = plan["paths"]
    need(paths["keep"] in ("first", "shortest", "most_probable"), "keep")
    need(paths["keep"] == "first" or paths["attempts"] >= 2, "one of several paths")
    need(0.0 < paths["temperature"] <= 10.0 and 0.0 < paths["top_p"] <= 1.0, "drawing")


def check_plan(vectors: Any) -> None:
    """Plan hash, and what follows from the plan."""
    plan = canonical(vectors["plan"])
    need(sha(vectors["plan"].encode("ascii")) == vectors["plan_hash"], "plan hash")
    check_answers(plan)
    scale = plan["statistics"]["integer_scale"]
    sensitivity = math.nextafter(scale * math.sqrt(2.0), math.inf)
    sigma = math.nextafter(plan["statistics"]["noise_multiplier"] * sensitivity, math.inf)
    bounds = {
        "statistics": scale * plan["privacy"]["max_units"] + math.ceil(10 * sigma),
        "demand": 1,
    }
    lengths = {"statistics": 2 * plan["allocation"]["clusters"], "demand": plan["pool_size"]}
    need(set(vectors["derived"]) == set(bounds), "purposes")
    for purpose, derived in vectors["derived"].items():
        total = plan["max_cohort"] * bounds[purpose]
        expected = {
            "length": lengths[purpose],
            "site_bound": bounds[purpose],
            "sum_bound": total,
            "parameters_digest": opening(lengths[purpose], total)["digest"],
        }
        need(derived == expected, f"derived numbers of {purpose}")
    check_slms(plan["slm"], vectors["slms"])


SLM_DIGESTS = {"weights_sha256", "tokenizer_sha256", "template_sha256"}
SLM_FIELDS = SLM_DIGESTS | {"architecture", "parameters", "licence", "revision"}


def check_slms(bounds: Any, cases: Any) -> None:
    """Fields of an acceptance's `slm`, and whether the plan allows it."""
    need(set(bounds) == {"families", "licences", "max_parameters"}, "fields of the plan's slm")
    for case in cases:
        slm = canonical(case["slm"])
        need(sha(case["slm"].encode("ascii")) == case["sha256"], "hash of a slm")
        need(set(slm) == SLM_FIELDS and slm["parameters"] >= 1, "fields of a slm")
        digests = [slm[name] for name in SLM_DIGESTS]
        need(all(re.fullmatch("[0-9a-f]{64}", one) for one in digests), "digests of a slm")
        allowed = (
            (not bounds["families"] or slm["architecture"] in bounds["families"])
            and (not bounds["max_parameters"] or slm["parameters"] <= bounds["max_parameters"])
            and (not bounds["licences"] or slm["licence"] in bounds["licences"])
        )
        need(case["allowed"] is allowed, f"a slm of {slm['architecture']}")
    need({case["allowed"] for case in cases} == {True, False}, "too few slms")


# --- section 7.2: masks -----------------------------------------------------------------------


def field(raw: bytes) -> bytes:
    """F(x)."""
    return len(raw).to_bytes(8, "big") + raw


def pair_mask(
    low: tuple[str, bytes], high: tuple[str, bytes], secret: bytes, context: bytes, n: int, t: int
) -> list[int]:
    """The mask of one pair of sites."""
    info = b"lada/2/pairwise-mask" + n.to_bytes(8, "big") + t.to_bytes(8, "big") + field(context)
    for name, public in (low, high):
        info += field(name.encode("ascii")) + field(public)
    key = HKDF(hashes.SHA256(), 32, None, info).derive(secret)
    stream = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()
    bits = (t - 1).bit_length()
    width = 4 if bits <= 32 else 8
    mask: list[int] = []
    while len(mask) < n:
        word = int.from_bytes(stream.update(bytes(width)), "little") % (1 << bits)
        if word < t:
            mask.append(word)
    return mask


def masks_of(private: dict[str, bytes], context: bytes, n: int, t: int) -> dict[str, list[int]]:
    """Every site's mask."""
    keys = {site: X25519PrivateKey.from_private_bytes(raw) for site, raw in private.items()}
    public = {site: key.public_key().public_bytes_raw() for site, key in keys.items()}
    totals = {site: [0] * n for site in keys}
    sites = sorted(keys)
    for at, low in enumerate(sites):
        for high in sites[at + 1 :]:
            secret = keys[low].exchange(X25519PublicKey.from_public_bytes(public[high]))
            mask = pair_mask((low, public[low]), (high, public[high]), secret, context, n, t)
            totals[low] = [(a + b) % t for a, b in zip(totals[low], mask, strict=True)]
            totals[high] = [(a - b) % t for a, b in zip(totals[high], mask, strict=True)]
    return totals


def check_masks(vectors: Any) -> None:
    """Keys digest, context and masks."""
    private = {site: bytes.fromhex(one) for site, one in vectors["private_keys"].items()}
    for site, raw in private.items():
        public = X25519PrivateKey.from_private_bytes(raw).public_key().public_bytes_raw()
        need(public.hex() == vectors["public_keys"][site], f"public key of {site}")
    digest = sha(encode(vectors["messages"]).encode("ascii"))
    need(digest == vectors["keys_digest"], "keys digest")
    context = {"protocol": "lada/2/mask"}
    for name in (
        "study_id", "plan_hash", "roster_hash", "round_id", "purpose", "attempt", "keys_digest"
    ):  # fmt: skip
        context[name] = vectors[name]
    need(encode(context) == vectors["context"], "context")
    raw_context = vectors["context"].encode("ascii")
    need(len(vectors["masks"]) == 3, "three moduli")
    for one in vectors["masks"]:
        found = masks_of(private, raw_context, one["length"], one["modulus"])
        need(found == one["masks"], f"masks modulo {one['modulus']}")
        sums = [sum(column) % one["modulus"] for column in zip(*found.values(), strict=True)]
        need(not any(sums), "masks do not cancel")
