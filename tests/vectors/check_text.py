"""The checker's canonical JSON, envelopes and transcripts (sections 2 to 4, 10)."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey


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
    need(set(header) == HEADER_FIELDS and header["version"] == 2, "header: fields or version")
    parties = {one["id"]: one for one in roster["parties"]}
    need(header["sender"] in parties, "sender is not in the roster")
    party = parties[header["sender"]]
    need(party["role"] in SENDERS[header["kind"]], "this role may not send this kind")
    need(header["roster_hash"] == roster_hash, "another roster")
    key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(party["signing_key"]))
    try:
        key.verify(bytes.fromhex(signature), b"lada/2/" + header_text.encode("ascii"))
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
