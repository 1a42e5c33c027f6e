"""Writes the test vectors of SPEC.md with this implementation.

Run `python tests/vectors/generate.py FOLDER` to write all files. Everything but `sealed.json` and
`scores.json` is deterministic: keys come from fixed names, times and numbers are constants.
Encryption is randomised by nature, so those files are new at each run and are checked by what
they open to.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from generate_ledger import ledger_vectors
from generate_rings import (
    mask_vectors,
    parameter_vectors,
    plan_vectors,
    score_vectors,
    sealed_vectors,
)
from generate_world import (
    SITES,
    Vectors,
    digest_of,
    in_attempt,
    mask_messages,
    message,
    signing_key,
    the_plan,
    the_roster,
)

from lada_protocol.kinds import Kind
from lada_protocol.rounds.index import MessageIndex
from lada_protocol.rounds.transcript import FIRST, build_transcript
from lada_protocol.wire.envelope import SIGNATURE_CONTEXT
from lada_secure.canonical import canonical_json
from lada_secure.method.plan import STATISTICS


def canonical_json_vectors() -> Vectors:
    """Spellings that are canonical, and others of the same values that are not."""
    values: list[Any] = [
        {},
        [],
        "",
        None,
        True,
        0,
        -1,
        10**30,
        1.0,
        -0.0,
        0.1,
        1e-05,
        0.0001,
        1e16,
        1e15,
        5e-324,
        1.7976931348623157e308,
        {"b": 1, "a": {"d": [1, 2.5], "c": None}, "A": False, "\u00e9": 1, "": 0},
        'quote " backslash \\ slash / tab \t feed \n return \r null \x00 delete \x7f',
        "\u00fc \u20ac \U0001f44b \u2028 \b \f",
    ]
    refused = [
        "",
        " {}",
        "{}\n",
        '{"a": 1}',
        '{"b":1,"a":2}',
        '{"a":1,"a":1}',
        "1.50",
        "1e5",
        "01",
        "+1",
        "-0",
        "NaN",
        "Infinity",
        '"\\u00FC"',
        '"\\/"',
        '"\u00fc"',
        "[1,]",
        "{'a':1}",
    ]
    return {
        "accepted": [canonical_json(one).decode("ascii") for one in values],
        "refused": refused,
    }


def envelope_vectors() -> Vectors:
    """A roster and messages of it, with changed messages that must be refused."""
    messages = [
        (
            message(Kind.PLAN, "coordinator", {"certificate": "PEM"}, the_plan().to_bytes()),
            the_plan().to_bytes(),
        ),
        (in_attempt(Kind.COHORT, "coordinator", {"sites": list(SITES)}), b""),
        *((one, b"") for one in mask_messages().values()),
        (
            message(
                Kind.RECEIPT,
                "auditor",
                {"head_index": 2, "head_hash": digest_of("head")},
                to="site-a",
                purpose=STATISTICS,
            ),
            b"",
        ),
    ]
    good = messages[2][0]
    swapped = good.header_bytes.replace(b'"attempt":1', b'"attempt":2')
    refused = [
        ("another attempt under the same signature", swapped, good.signature),
        (
            "the signature of another site",
            good.header_bytes,
            signing_key("site-b").sign(SIGNATURE_CONTEXT + good.header_bytes),
        ),
        (
            "a signature without the context",
            good.header_bytes,
            signing_key("site-a").sign(good.header_bytes),
        ),
        ("white space", *_signed_bytes(good.header_bytes.replace(b'":1', b'": 1', 1), "site-a")),
        (
            "a missing version",
            *_signed_bytes(good.header_bytes.replace(b',"version":2', b""), "site-a"),
        ),
        (
            "a kind that a site may not send",
            *_signed_bytes(good.header_bytes.replace(b"mask_key", b"cohort"), "site-a"),
        ),
        (
            "another roster",
            *_signed_bytes(
                good.header_bytes.replace(the_roster().hash.encode(), b"0" * 64), "site-a"
            ),
        ),
    ]
    return {
        "roster": the_roster().to_bytes().decode("ascii"),
        "roster_hash": the_roster().hash,
        "messages": [
            {
                "header": one.header_bytes.decode("ascii"),
                "signature": one.signature.hex(),
                "message_hash": one.message_hash,
                "payload": payload.decode("ascii"),
            }
            for one, payload in messages
        ],
        "refused": [
            {"why": why, "header": header.decode("ascii"), "signature": signature.hex()}
            for why, header, signature in refused
        ],
    }


def _signed_bytes(header_bytes: bytes, signer: str) -> tuple[bytes, bytes]:
    return header_bytes, signing_key(signer).sign(SIGNATURE_CONTEXT + header_bytes)


def transcript_vectors() -> Vectors:
    """Two chained transcripts over messages of two rounds."""
    index = MessageIndex(the_plan(), the_roster())
    for one in (*mask_messages().values(), in_attempt(Kind.COHORT, "coordinator", {"sites": []})):
        index.add(one)
    index.add(message(Kind.ACCEPTANCE, "site-a", {}))
    index.add(message(Kind.RECEIPT, "auditor", {}, to="site-a"))
    index.add(message(Kind.REFUSAL, "auditor", {}, to="site-b"))
    index.add(message(Kind.TRAINED, "site-a", {}, round_id=1))
    first = build_transcript(index, 0, previous=FIRST)
    second = build_transcript(index, 1, previous=first.hash)
    return {
        "messages": sorted(one.header_bytes.decode("ascii") for one in index),
        "transcripts": [
            {"bytes": one.to_bytes().decode("ascii"), "hash": one.hash} for one in (first, second)
        ],
    }


FILES: dict[str, Callable[[], Vectors]] = {
    "canonical_json.json": canonical_json_vectors,
    "envelope.json": envelope_vectors,
    "plan.json": plan_vectors,
    "parameters.json": parameter_vectors,
    "masks.json": mask_vectors,
    "ledger.json": ledger_vectors,
    "transcript.json": transcript_vectors,
    "sealed.json": sealed_vectors,
    "scores.json": score_vectors,
}
RANDOMISED = frozenset({"sealed.json", "scores.json"})


def render(vectors: Vectors) -> bytes:
    """The bytes of a vector file: JSON with one indent, ASCII, sorted."""
    import json

    text = json.dumps(vectors, indent=1, sort_keys=True, ensure_ascii=True, allow_nan=False)
    return text.encode("ascii") + b"\n"


def main(folder: Path) -> None:
    """Write every file."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in FILES.items():
        (folder / name).write_bytes(render(make()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
