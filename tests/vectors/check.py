"""Checks the test vectors from SPEC.md alone: standard library and `cryptography`, nothing else.

Run `python tests/vectors/check.py protocol/vectors`. It exits 1 and says which file and value is
wrong. It shares no code with the implementation, on purpose: where both agree, the page is right.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

N = 4096


class WrongVectorError(Exception):
    """A vector does not follow SPEC.md."""


def need(holds: bool, what: str) -> None:
    """Raise unless it holds."""
    if not holds:
        raise WrongVectorError(what)


def sha(raw: bytes) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(raw).hexdigest()


# --- section 2: canonical JSON ----------------------------------------------------------------

_ESCAPES = {
    '"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\b": "\\b", "\f": "\\f"
}  # fmt: skip


def encode(value: Any) -> str:
    """Canonical JSON, written out by hand."""
    if value is None or value is True or value is False:
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return '"' + "".join(_escape(one) for one in value) + '"'
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        need(math.isfinite(value), "a number is not finite")
        return repr(value)
    if isinstance(value, list):
        return "[" + ",".join(encode(one) for one in value) + "]"
    inside = (encode(key) + ":" + encode(value[key]) for key in sorted(value))
    return "{" + ",".join(inside) + "}"


def _escape(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    if 0x20 <= ord(character) <= 0x7E:
        return character
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    need(len(value) == len(pairs), "a key appears twice")
    return value


def canonical(text: str) -> Any:
    """Parse canonical JSON and refuse everything else."""
    try:
        value = json.loads(text, object_pairs_hook=_unique)
    except ValueError as error:
        raise WrongVectorError(f"not JSON: {error}") from error
    need(text.isascii() and encode(value) == text, "not canonical JSON")
    return value


def check_canonical_json(vectors: Any) -> None:
    """Accepted texts are canonical; refused ones are not."""
    for text in vectors["accepted"]:
        canonical(text)
    for text in vectors["refused"]:
        try:
            canonical(text)
        except WrongVectorError:
            continue
        raise WrongVectorError(f"accepted {text!r}")


# --- sections 3, 4: roster and envelopes ------------------------------------------------------

SENDERS = {
    "plan": {"coordinator"},
    "cohort": {"coordinator"},
    "mask_key": {"site"},
    "receipt": {"auditor"},
}
HEADER_FIELDS = {
    "version", "kind", "study_id", "plan_hash", "roster_hash", "round_id", "attempt", "purpose",
    "sender", "to", "body", "payload_sha256", "payload_bytes",
}  # fmt: skip


def check_message(header_text: str, signature: str, roster: Any, roster_hash: str) -> Any:
    """A header under its sender's signature."""
    header = canonical(header_text)
    need(set(header) == HEADER_FIELDS and header["version"] == 1, "header: fields or version")
    parties = {one["id"]: one for one in roster["parties"]}
    need(header["sender"] in parties, "sender is not in the roster")
    party = parties[header["sender"]]
    need(party["role"] in SENDERS[header["kind"]], "this role may not send this kind")
    need(header["roster_hash"] == roster_hash, "another roster")
    key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(party["signing_key"]))
    try:
        key.verify(bytes.fromhex(signature), b"lada/1/" + header_text.encode("ascii"))
    except (InvalidSignature, ValueError) as error:
        raise WrongVectorError("signature") from error
    return header


def check_envelopes(vectors: Any) -> None:
    """Roster hash, message hashes, signatures, payload hashes; refused ones are refused."""
    roster = canonical(vectors["roster"])
    need(sha(vectors["roster"].encode("ascii")) == vectors["roster_hash"], "roster hash")
    ids = [one["id"] for one in roster["parties"]]
    need(ids == sorted(set(ids)), "roster is not sorted")
    for one in vectors["messages"]:
        header = check_message(one["header"], one["signature"], roster, vectors["roster_hash"])
        need(sha(one["header"].encode("ascii")) == one["message_hash"], "message hash")
        payload = one["payload"].encode("ascii")
        need(header["payload_sha256"] == sha(payload), "payload hash")
        need(header["payload_bytes"] == len(payload), "payload length")
    good = {(one["header"], one["signature"]) for one in vectors["messages"]}
    for one in vectors["refused"]:
        need((one["header"], one["signature"]) not in good, "a good message among the refused")
        try:
            check_message(one["header"], one["signature"], roster, vectors["roster_hash"])
        except WrongVectorError:
            continue
        raise WrongVectorError(f"accepted: {one['why']}")


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
        "format": "lada/1/opening",
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
        "format": "lada/1/scoring",
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


def check_plan(vectors: Any) -> None:
    """Plan hash, and what follows from the plan."""
    plan = canonical(vectors["plan"])
    need(sha(vectors["plan"].encode("ascii")) == vectors["plan_hash"], "plan hash")
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


# --- section 7.2: masks -----------------------------------------------------------------------


def field(raw: bytes) -> bytes:
    """F(x)."""
    return len(raw).to_bytes(8, "big") + raw


def pair_mask(
    low: tuple[str, bytes], high: tuple[str, bytes], secret: bytes, context: bytes, n: int, t: int
) -> list[int]:
    """The mask of one pair of sites."""
    info = b"lada/1/pairwise-mask" + n.to_bytes(8, "big") + t.to_bytes(8, "big") + field(context)
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
    context = {"protocol": "lada/1/mask"}
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


# --- section 9: ledger ------------------------------------------------------------------------


def check_ledger(vectors: Any) -> None:
    """Chain, hashes and signatures."""
    genesis = {
        "ledger_version": 1,
        "population": vectors["population"],
        "public_key": vectors["public_key"],
        "site": vectors["site"],
    }
    previous = sha(encode(genesis).encode("ascii"))
    need(previous == vectors["genesis_hash"], "genesis hash")
    key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(vectors["public_key"]))
    need(len(vectors["lines"]) == len(vectors["entry_hashes"]), "one hash per line")
    for index, line in enumerate(vectors["lines"]):
        entry = canonical(line)
        need((entry["index"], entry["previous_hash"]) == (index, previous), f"link of {index}")
        signature = bytes.fromhex(entry.pop("signature"))
        try:
            key.verify(signature, b"lada/ledger/1/" + encode(entry).encode("ascii"))
        except InvalidSignature as error:
            raise WrongVectorError(f"signature of entry {index}") from error
        previous = sha(line.encode("ascii"))
        need(previous == vectors["entry_hashes"][index], f"hash of entry {index}")


# --- section 10: transcripts ------------------------------------------------------------------

OUTSIDE = {"transcript", "close", "finished", "failed", "receipt"}


def check_transcripts(vectors: Any) -> None:
    """Transcripts, made again from the headers."""
    headers = [(canonical(text), sha(text.encode("ascii"))) for text in vectors["messages"]]
    previous = "0" * 64
    for round_id, one in enumerate(vectors["transcripts"]):
        entries = [
            {
                **{name: head[name] for name in ("attempt", "kind", "purpose", "sender", "to")},
                "message_hash": name_of,
            }
            for head, name_of in headers
            if head["round_id"] == round_id
            and head["kind"] not in OUTSIDE
            and not (head["kind"] == "refusal" and head["to"])
        ]
        order = ("kind", "purpose", "attempt", "sender", "to")
        entries.sort(key=lambda entry: tuple(entry[name] for name in order))
        head = headers[0][0]
        text = encode(
            {
                "study_id": head["study_id"],
                "plan_hash": head["plan_hash"],
                "round_id": round_id,
                "previous": previous,
                "entries": entries,
            }
        )
        need(text == one["bytes"], f"transcript of round {round_id}")
        previous = sha(text.encode("ascii"))
        need(previous == one["hash"], f"transcript hash of round {round_id}")


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


CHECKS: dict[str, Callable[[Any], None]] = {
    "canonical_json.json": check_canonical_json,
    "envelope.json": check_envelopes,
    "plan.json": check_plan,
    "parameters.json": check_parameters,
    "masks.json": check_masks,
    "ledger.json": check_ledger,
    "transcript.json": check_transcripts,
    "sealed.json": check_sealed,
}


def check_file(name: str, raw: bytes) -> None:
    """Check one vector file.

    Raises: WrongVectorError.
    """
    try:
        CHECKS[name](json.loads(raw))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, StopIteration) as error:
        raise WrongVectorError(f"{type(error).__name__}: {error}") from error


def main(folder: Path) -> int:
    """Check all files of a folder; the number of bad ones."""
    bad = 0
    for name in CHECKS:
        try:
            check_file(name, (folder / name).read_bytes())
            print(f"ok     {name}")
        except (WrongVectorError, OSError) as error:
            bad += 1
            print(f"WRONG  {name}: {error}")
    return bad


if __name__ == "__main__":
    sys.exit(1 if main(Path(sys.argv[1])) else 0)
