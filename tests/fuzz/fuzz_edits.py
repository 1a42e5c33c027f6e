"""From a few bytes to a changed message: a fuzz input is a script of edits to a valid message.

Scripts stay small whatever they change, so a corpus of them does too, and every prefix and every
random string of bytes is a script. After the edits the message is bound and signed again, so that
most inputs get behind hashes and signatures; some edits spoil those on purpose.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fuzz_loopback import Row

from lada_protocol.kinds import Kind
from lada_protocol.wire.envelope import SIGNATURE_CONTEXT, Envelope
from lada_secure.canonical import canonical_json, sha256_hex
from lada_secure.errors import ParameterError

_Item = TypeVar("_Item")

# What a ledger entry is signed behind; SPEC.md, "Ledger".
_ENTRY_DOMAIN = b"lada/ledger/2/"

_CORPUS = Path(__file__).resolve().parent / "corpus" / "payloads"

# Each once crashed or misled a process that gave foreign bytes to the native library (nothing at
# all, a protobuf with `sizes` too large or missing, a cut zstd stream, a SEAL header), or is what
# makes a JSON parser stumble. The last two would be large files.
CRASHERS = (
    *(path.read_bytes() for path in sorted(_CORPUS.iterdir())),
    b"[" * 20_000,
    b'{"a":' * 5_000 + b"1" + b"}" * 5_000,
)

_DEEP: Any = 0
for _ in range(60):
    _DEEP = [_DEEP]

VALUES: tuple[Any, ...] = (
    0, 1, 2, 3, 255, 1_000_000, 10**9, 2**31, 2**53, 2**63, 2**64, 10**400, -1, -(10**9),
    0.0, -0.0, 0.5, 1.0, 3.0, 1e-300, 1e-9, 0.01, 1e6, 1e308, None, True, False,
    "", " ", "a", "a" * 33, "x" * 5_000, "../../up", "\ud800", "\x00", "\u00e9", "0" * 64,
    "f" * 64, "site-a", "site-b", "auditor", "coordinator", "statistics", "demand", "training",
    "2026-01-31T12:00:00Z", "9999-99-99T99:99:99.999999Z", "SelfComposedDpEvent",
    [], {}, [[]], [0], [None], {"a": 1}, _DEEP, list(range(300)),
)  # fmt: skip


class Dice:
    """Decisions read from bytes; zero where they have ended, which means the mildest choice."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def byte(self) -> int:
        """0 to 255."""
        if self._at >= len(self._data):
            return 0
        self._at += 1
        return self._data[self._at - 1]

    def below(self, limit: int) -> int:
        """0 to limit - 1."""
        if limit <= 1:
            return 0
        number, room = self.byte(), 256
        while room < limit:
            number, room = number << 8 | self.byte(), room << 8
        return number % limit

    def place(self, length: int) -> int:
        """A position in something of this length."""
        return self.below(max(1, length))

    def pick(self, items: Sequence[_Item]) -> _Item:
        """One of them."""
        return items[self.place(len(items))]

    def some(self, most: int) -> bytes:
        """Up to `most` bytes."""
        return bytes(self.byte() for _ in range(self.below(most + 1)))


@dataclass(slots=True, kw_only=True)
class Draft:
    """A message before it is bound and signed.

    binds: the header gets hash and size of the payload. raw_edits: changes of the encoded header,
    before it is signed. bad_signature: changes the signature.
    """

    header: dict[str, Any]
    payload: bytes
    signer: str
    binds: bool = True
    raw_edits: int = 0
    bad_signature: bool = False

    @classmethod
    def of(cls, envelope: Envelope, payload: bytes) -> Draft:
        """A copy of a valid message."""
        header = json.loads(envelope.header_bytes)
        return cls(header=header, payload=payload, signer=envelope.header.sender)

    def finish(self, dice: Dice, keys: Mapping[str, Ed25519PrivateKey]) -> Row:
        """The message as it is sent."""
        if self.binds:
            self.header["payload_sha256"] = hashlib.sha256(self.payload).hexdigest()
            self.header["payload_bytes"] = len(self.payload)
        raw = canonical_json(self.header)
        for _ in range(self.raw_edits):
            raw = edit_bytes(raw, dice)
        signature = keys[self.signer].sign(SIGNATURE_CONTEXT + raw)
        if self.bad_signature:
            signature = edit_bytes(signature, dice)
        return Row(header_bytes=raw, signature=signature, payload=self.payload)


def edit_bytes(raw: bytes, dice: Dice) -> bytes:
    """One edit: a bit, a byte, a run of ones or zeros, a cut, an insertion, a repetition."""
    made, at = bytearray(raw), dice.place(len(raw))
    operation = dice.below(8)
    if operation == 0 and made:
        made[at] ^= 1 << dice.below(8)
    elif operation == 1 and made:
        made[at] = dice.byte()
    elif operation in (2, 3):
        run = dice.pick((1, 7, 64, 4_096, 40_000))
        filler = b"\xff" if operation == 2 else b"\x00"
        made[at : at + run] = filler * len(made[at : at + run])
    elif operation == 4:
        del made[at : at + dice.pick((1, 2, 36, 1_000, 10**6))]
    elif operation == 5:
        made[at:at] = dice.some(16)
    elif operation == 6:
        made[at:at] = made[at : at + dice.pick((1, 36, 1_000))]
    else:
        return dice.pick(CRASHERS)
    return bytes(made)


def edit_json(value: Any, dice: Dice) -> Any:
    """One edit somewhere inside: another value, one part fewer, one more, or one twice."""
    if isinstance(value, dict) and value:
        return _edit_object(dict(value), dice)
    if isinstance(value, list) and value:
        rows, at = list(value), dice.place(len(value))
        operation = dice.below(8)
        if operation == 0:
            del rows[at]
        elif operation == 1:
            rows.insert(at, rows[at])
        elif operation == 2:
            rows.insert(at, dice.pick(VALUES))
        elif operation == 3:
            rows.reverse()
        else:
            rows[at] = edit_json(rows[at], dice)
        return rows
    return _another(value, dice)


def _edit_object(value: dict[str, Any], dice: Dice) -> dict[str, Any]:
    key = dice.pick(sorted(value))
    operation = dice.below(8)
    if operation == 0:
        del value[key]
    elif operation == 1:
        value[dice.pick(("more", "", "__class__", "\ud800", "version"))] = dice.pick(VALUES)
    elif operation == 2:
        value[key] = value[dice.pick(sorted(value))]
    elif operation == 3:
        value[key] = dice.pick(VALUES)
    else:
        value[key] = edit_json(value[key], dice)
    return value


def _another(value: Any, dice: Dice) -> Any:
    if isinstance(value, bool) or value is None:
        return dice.pick(VALUES)
    if isinstance(value, int) and dice.below(2):
        return value + dice.pick((1, -1, 2, 1_000, 10**12, -(10**12)))
    if isinstance(value, float) and dice.below(2):
        return value * dice.pick((0.0, -1.0, 2.0, 1e-12, 0.5))
    if isinstance(value, str) and value and dice.below(2):
        edited = edit_bytes(value.encode("utf-8", "replace"), dice)
        return edited.decode("latin-1")
    return dice.pick(VALUES)


def _header_field(draft: Draft, dice: Dice) -> None:
    field = dice.pick(sorted(draft.header))
    draft.header[field] = edit_json(draft.header.get(field), dice)


def _header_keys(draft: Draft, dice: Dice) -> None:
    draft.header = edit_json(draft.header, dice)


def _body(draft: Draft, dice: Dice) -> None:
    draft.header["body"] = edit_json(draft.header.get("body"), dice)


def _payload_bytes(draft: Draft, dice: Dice) -> None:
    draft.payload = edit_bytes(draft.payload, dice)


def _payload_json(draft: Draft, dice: Dice) -> None:
    lines = draft.payload.split(b"\n")
    at = dice.place(len(lines))
    try:
        value = json.loads(lines[at])
    except (ValueError, RecursionError):
        draft.payload = edit_bytes(draft.payload, dice)
        return
    try:
        lines[at] = canonical_json(edit_json(value, dice))
    except ParameterError:
        # The value holds something that has no canonical form, 1e999 for one.
        lines[at] = edit_bytes(lines[at], dice)
    draft.payload = b"\n".join(lines)


def _crasher(draft: Draft, dice: Dice) -> None:
    draft.payload = dice.pick(CRASHERS)


def _raw_header(draft: Draft, _dice: Dice) -> None:
    draft.raw_edits += 1


def _signature(draft: Draft, _dice: Dice) -> None:
    draft.bad_signature = True


def _signer(draft: Draft, dice: Dice) -> None:
    draft.signer = dice.pick(("site-a", "site-b", "site-c", "auditor", "coordinator"))
    if dice.below(2):
        draft.header["sender"] = draft.signer


def _loose_payload(draft: Draft, dice: Dice) -> None:
    draft.binds = False
    draft.payload = edit_bytes(draft.payload, dice)


def _moved(draft: Draft, dice: Dice) -> None:
    field = dice.pick(("round_id", "attempt", "purpose", "to", "kind", "study_id", "plan_hash"))
    choices: Mapping[str, Sequence[Any]] = {
        "round_id": (0, 1, 2, 100_000),
        "attempt": (0, 1, 1_000),
        "purpose": ("", "statistics", "demand", "training"),
        "to": ("", "coordinator", "auditor", "site-a", "site-b"),
        "kind": [one.value for one in Kind],
        "study_id": ("study-1", "study-2"),
        "plan_hash": ("0" * 64,),
    }
    draft.header[field] = dice.pick(choices[field])


EDITS: tuple[Callable[[Draft, Dice], None], ...] = (
    _body,
    _payload_json,
    _payload_bytes,
    _header_field,
    _moved,
    _crasher,
    _raw_header,
    _header_keys,
    _signer,
    _signature,
    _loose_payload,
)


def bind_ledger(draft: Draft, key: Ed25519PrivateKey) -> None:
    """Chain and sign the entries of a changed ledger part again, as its owner can."""
    lines, previous = [], None
    for line in draft.payload.split(b"\n")[:-1]:
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            return
        if not isinstance(entry, dict):
            return
        entry.pop("signature", None)
        if previous is not None:
            entry["previous_hash"] = previous
        signed = {
            **entry,
            "signature": key.sign(_ENTRY_DOMAIN + canonical_json(entry)).hex(),
        }
        lines.append(canonical_json(signed))
        previous = sha256_hex(lines[-1])
    if lines and isinstance(draft.header.get("body"), dict):
        draft.payload = b"\n".join(lines) + b"\n"
        draft.header["body"]["head_hash"] = previous


def bind_plan(draft: Draft) -> None:
    """Name a changed plan by its own hash."""
    draft.header["plan_hash"] = sha256_hex(draft.payload)
