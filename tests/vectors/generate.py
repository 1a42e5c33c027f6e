"""Writes the test vectors of SPEC.md with this implementation.

Run `python tests/vectors/generate.py FOLDER` to write all files. Everything but `sealed.json` is
deterministic: keys come from fixed names, times and numbers are constants. Sealing is randomised
by nature, so that file is new at each run and is checked by what it opens to.
"""

from __future__ import annotations

import base64
import hashlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lada_protocol.envelope import SIGNATURE_CONTEXT, Envelope, Header, sign_envelope
from lada_protocol.index import Attempt, MessageIndex
from lada_protocol.kinds import Kind, Role
from lada_protocol.opening import (
    keys_digest,
    mask_context,
    purpose_length,
    purpose_parameters,
    site_bound_of,
    sum_bound_of,
)
from lada_protocol.plan import DEMAND, STATISTICS, StudyPlan, parse_plan
from lada_protocol.roster import Party, Roster
from lada_protocol.transcript import FIRST, build_transcript
from lada_secure.canonical import canonical_json
from lada_secure.encryption.masks import MaskKey, masked, pairwise_mask
from lada_secure.encryption.opening_key import OpeningKey
from lada_secure.encryption.parameters import (
    OpeningParameters,
    opening_parameters,
    scoring_parameters,
)
from lada_secure.encryption.sealing import add_sealed, parse_public_key, seal
from lada_secure.privacy.entries import (
    CommitEntry,
    DecisionEntry,
    LedgerEntry,
    LedgerIdentity,
    ReserveEntry,
    sign_entry,
)
from lada_secure.privacy.events import dpsgd_event, gaussian_event

SITES = ("site-a", "site-b", "site-c")
ATTEMPT = Attempt(round_id=0, purpose=STATISTICS, number=1)
Vectors = dict[str, Any]


def _seed(name: str) -> bytes:
    return hashlib.sha256(f"lada test vectors: {name}".encode("ascii")).digest()


def _signing_key(party: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(_seed(f"signing key of {party}"))


def _mask_key(site: str) -> MaskKey:
    return MaskKey.from_secret_bytes(_seed(f"mask key of {site}"))


def _digest(name: str) -> str:
    return _seed(name).hex()


def _roster() -> Roster:
    roles = {"auditor": Role.AUDITOR, "coordinator": Role.COORDINATOR}
    return Roster(
        study_ca=_digest("study CA"),
        parties=tuple(
            Party(
                id=name,
                role=roles.get(name, Role.SITE),
                tls_fingerprint=_digest(f"TLS certificate of {name}"),
                signing_fingerprint=_digest(f"signing certificate of {name}"),
                signing_key=_signing_key(name).public_key().public_bytes_raw().hex(),
            )
            for name in ("auditor", "coordinator", *SITES)
        ),
    )


def _plan() -> StudyPlan:
    return parse_plan(
        canonical_json(
            {
                "version": 1,
                "study_id": "vectors-1",
                "title": "Gr\u00fc\u00dfe \U0001f44b",
                "coordinator": "coordinator",
                "expires": "2030-01-31T12:00:00Z",
                "rounds": 2,
                "min_cohort": 3,
                "max_cohort": 5,
                "slm": "tiny",
                "embedder": "ngrams",
                "seed": 7,
                "pool_sha256": _digest("pool"),
                "pool_size": 20,
                "clusters_sha256": _digest("clusters"),
                "phase_timeout_s": 60.0,
                "privacy": {
                    "adjacency": "add_or_remove_one_unit",
                    "unit": "patient",
                    "target_delta": 1e-05,
                    "epsilon_cap": 8.0,
                    "max_records_per_unit": 4,
                    "max_units": 100,
                },
                "statistics": {"loss_clip": 4.0, "integer_scale": 16, "noise_multiplier": 8.5},
                "training": {
                    "noise_multiplier": 1.25,
                    "l2_clip_norm": 0.5,
                    "sampling_probability": 0.05,
                    "expected_units": 5.0,
                    "steps_per_round": 10,
                    "pool_gradients": "public",
                },
                "distillation": {
                    "adapter_rank": 4,
                    "adapter_layers": 2,
                    "adapter_targets": ["q_proj", "v_proj"],
                    "train_a": False,
                    "learning_rate": 0.0003,
                    "pool_batch_size": 4,
                    "private_weight": 0.3,
                    "contrastive_weight": 0.0,
                    "contrastive_form": "off",
                },
                "allocation": {
                    "strategy": "band",
                    "clusters": 5,
                    "difficulty_bins": 3,
                    "quota": 4,
                    "threshold": 0.0,
                    "exploration_weight": 0.1,
                    "screen_low": 0.05,
                    "screen_high": 0.95,
                },
                "paths": {"budget": 10, "max_new_tokens": 32, "attempts": 2},
            }
        )
    )


def _message(
    kind: Kind, sender: str, body: Mapping[str, Any], payload: bytes = b"", **place: Any
) -> Envelope:
    header = Header(
        **{
            "kind": kind.value,
            "study_id": _plan().study_id,
            "plan_hash": _plan().hash,
            "roster_hash": _roster().hash,
            "round_id": 0,
            "attempt": 0,
            "purpose": "",
            "sender": sender,
            "to": "",
            "body": dict(body),
            "payload_sha256": hashlib.sha256(payload).hexdigest(),
            "payload_bytes": len(payload),
            **place,
        }
    )
    return sign_envelope(header, _signing_key(sender))


def _in_attempt(kind: Kind, sender: str, body: Mapping[str, Any]) -> Envelope:
    return _message(
        kind,
        sender,
        body,
        round_id=ATTEMPT.round_id,
        purpose=ATTEMPT.purpose,
        attempt=ATTEMPT.number,
    )


def _mask_messages() -> dict[str, Envelope]:
    return {
        site: _in_attempt(Kind.MASK_KEY, site, {"public_key": _mask_key(site).public_bytes.hex()})
        for site in SITES
    }


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
            _message(Kind.PLAN, "coordinator", {"certificate": "PEM"}, _plan().to_bytes()),
            _plan().to_bytes(),
        ),
        (_in_attempt(Kind.COHORT, "coordinator", {"sites": list(SITES)}), b""),
        *((one, b"") for one in _mask_messages().values()),
        (
            _message(
                Kind.RECEIPT,
                "auditor",
                {"head_index": 2, "head_hash": _digest("head")},
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
            _signing_key("site-b").sign(SIGNATURE_CONTEXT + good.header_bytes),
        ),
        (
            "a signature without the context",
            good.header_bytes,
            _signing_key("site-a").sign(good.header_bytes),
        ),
        ("white space", *_signed_bytes(good.header_bytes.replace(b'":1', b'": 1', 1), "site-a")),
        (
            "a missing version",
            *_signed_bytes(good.header_bytes.replace(b',"version":1', b""), "site-a"),
        ),
        (
            "a kind that a site may not send",
            *_signed_bytes(good.header_bytes.replace(b"mask_key", b"cohort"), "site-a"),
        ),
        (
            "another roster",
            *_signed_bytes(good.header_bytes.replace(_roster().hash.encode(), b"0" * 64), "site-a"),
        ),
    ]
    return {
        "roster": _roster().to_bytes().decode("ascii"),
        "roster_hash": _roster().hash,
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
    return header_bytes, _signing_key(signer).sign(SIGNATURE_CONTEXT + header_bytes)


def _opening_numbers(parameters: OpeningParameters) -> Vectors:
    return {
        "length": parameters.length,
        "sum_bound": parameters.sum_bound,
        "plain_modulus": parameters.plain_modulus,
        "coeff_modulus": parameters.coeff_modulus,
        "coefficient_bytes": parameters.coefficient_bytes,
        "chunks": parameters.chunks,
        "sealed_bytes": parameters.sealed_bytes,
        "public_key_bytes": parameters.public_key_bytes,
        "digest": parameters.digest,
    }


def plan_vectors() -> Vectors:
    """A plan and what every party derives from it."""
    plan = _plan()
    return {
        "plan": plan.to_bytes().decode("ascii"),
        "plan_hash": plan.hash,
        "derived": {
            purpose: {
                "length": purpose_length(plan, purpose),
                "site_bound": site_bound_of(plan, purpose),
                "sum_bound": sum_bound_of(plan, purpose),
                "parameters_digest": purpose_parameters(plan, purpose).digest,
            }
            for purpose in (STATISTICS, DEMAND)
        },
    }


def parameter_vectors() -> Vectors:
    """Parameter sets of openings and of blind scoring."""
    openings = [(1, 1), (4096, 16), (4097, 1000), (100_000, 2**20), (1_000_000, 10**9), (10, 77)]
    scorings = [(1, 1), (64, 1), (64, 64), (100, 7), (1024, 1024)]
    return {
        "opening": [
            _opening_numbers(opening_parameters(length=length, sum_bound=bound))
            for length, bound in openings
        ],
        "scoring": [
            {
                "cells": one.cells,
                "row_bound": one.row_bound,
                "query_scale_bits": one.query_scale_bits,
                "matrix_scale_bits": one.matrix_scale_bits,
                "query_bytes": one.query_bytes,
                "scores_bytes_of_5000": one.scores_bytes(5000),
                "digest": one.digest,
            }
            for cells, bound in scorings
            for one in [scoring_parameters(cells=cells, row_bound=bound)]
        ],
    }


def _masks(length: int, modulus: int, context: bytes) -> dict[str, list[int]]:
    public = {site: _mask_key(site).public_bytes for site in SITES}
    return {
        site: pairwise_mask(
            _mask_key(site),
            site,
            {other: raw for other, raw in public.items() if other != site},
            context=context,
            length=length,
            modulus=modulus,
        ).tolist()
        for site in SITES
    }


def mask_vectors() -> Vectors:
    """Three sites' masks, for words of 4 and of 8 bytes; private keys are given."""
    keys = _mask_messages()
    digest = keys_digest(keys)
    context = mask_context(_plan(), _roster(), ATTEMPT, digest)
    return {
        "private_keys": {site: _seed(f"mask key of {site}").hex() for site in SITES},
        "public_keys": {site: _mask_key(site).public_bytes.hex() for site in SITES},
        "messages": {site: one.message_hash for site, one in keys.items()},
        "keys_digest": digest,
        "study_id": _plan().study_id,
        "plan_hash": _plan().hash,
        "roster_hash": _roster().hash,
        "round_id": ATTEMPT.round_id,
        "purpose": ATTEMPT.purpose,
        "attempt": ATTEMPT.number,
        "context": context.decode("ascii"),
        "masks": [
            {"length": length, "modulus": modulus, "masks": _masks(length, modulus, context)}
            for length, modulus in ((8, 65537), (20, 4294828033), (20, 4398046150657))
        ],
    }


def ledger_vectors() -> Vectors:
    """A short ledger; its epsilons are constants, only chain and signatures are shown here."""
    key = _signing_key("site-a")
    identity = LedgerIdentity(
        site="site-a", population="patients", public_key=key.public_key().public_bytes_raw()
    )
    common: dict[str, Any] = {
        "site": "site-a",
        "population": "patients",
        "study_id": _plan().study_id,
        "plan_hash": _plan().hash,
        "signature": "",
    }
    cost: dict[str, Any] = {
        "round_id": 0,
        "chunk": 0,
        "attempt": 0,
        "unit": "patient",
        "adjacency": "add_or_remove_one_unit",
        "data_fingerprint": _digest("data"),
        "target_delta": 1e-05,
        "total_cap": 20.0,
        "study_cap": 8.0,
    }
    entries: list[LedgerEntry] = []

    def add(make: Callable[..., LedgerEntry], second: int, **fields: Any) -> LedgerEntry:
        entry = make(
            **common,
            index=len(entries),
            previous_hash=entries[-1].entry_hash if entries else identity.genesis_hash,
            time=f"2026-01-31T12:00:{second:02d}.000000Z",
            **fields,
        )
        entries.append(sign_entry(entry, key))
        return entries[-1]

    add(
        DecisionEntry,
        0,
        decision="approve",
        expires="2030-01-31T12:00:00.000000Z",
        decided_by="dr.weber",
        statement="gepr\u00fcft",
    )
    paid = add(
        ReserveEntry,
        1,
        **cost,
        purpose=STATISTICS,
        mechanism="discrete_gaussian",
        parameters={"l2_sensitivity": 22.627416997969522, "std": 192.33304448274094},
        event=gaussian_event(8.5),
        epsilon_after=0.4375,
        epsilon_rdp_after=0.5,
        study_epsilon_after=0.4375,
        study_epsilon_rdp_after=0.5,
    )
    add(
        CommitEntry,
        2,
        round_id=0,
        purpose=STATISTICS,
        chunk=0,
        reserve_hash=paid.entry_hash,
        output_sha256=_digest("output"),
        output_bytes=80,
    )
    add(
        ReserveEntry,
        3,
        **cost,
        purpose="training",
        mechanism="dp_sgd",
        parameters={"l2_clip_norm": 0.5, "expected_units": 5.0},
        event=dpsgd_event(noise_multiplier=1.25, sampling_probability=0.05, steps=10),
        epsilon_after=1.25,
        epsilon_rdp_after=1.5,
        study_epsilon_after=1.25,
        study_epsilon_rdp_after=1.5,
    )
    return {
        "site": identity.site,
        "population": identity.population,
        "public_key": identity.public_key.hex(),
        "genesis_hash": identity.genesis_hash,
        "lines": [one.line().decode("ascii") for one in entries],
        "entry_hashes": [one.entry_hash for one in entries],
    }


def transcript_vectors() -> Vectors:
    """Two chained transcripts over messages of two rounds."""
    index = MessageIndex(_plan().study_id, _plan().hash)
    for one in (*_mask_messages().values(), _in_attempt(Kind.COHORT, "coordinator", {"sites": []})):
        index.add(one)
    index.add(_message(Kind.ACCEPTANCE, "site-a", {}))
    index.add(_message(Kind.RECEIPT, "auditor", {}, to="site-a"))
    index.add(_message(Kind.REFUSAL, "auditor", {}, to="site-b"))
    index.add(_message(Kind.TRAINED, "site-a", {}, round_id=1))
    first = build_transcript(index, 0, previous=FIRST)
    second = build_transcript(index, 1, previous=first.hash)
    return {
        "messages": sorted(one.header_bytes.decode("ascii") for one in index),
        "transcripts": [
            {"bytes": one.to_bytes().decode("ascii"), "hash": one.hash} for one in (first, second)
        ],
    }


def sealed_vectors() -> Vectors:
    """Three sealed contributions, the opening key's halves, and what their sum opens to."""
    parameters = opening_parameters(length=10, sum_bound=300)
    context = b"vector of a sealed sum"
    masks = _masks(parameters.length, parameters.plain_modulus, context)
    vectors = {
        site: np.array([(7 * number + 31 * entry) % 201 - 100 for entry in range(10)])
        for number, site in enumerate(SITES)
    }
    key = OpeningKey.generate(parameters)
    sealed = {
        site: seal(
            parse_public_key(key.public_bytes, parameters),
            parameters,
            masked(
                vectors[site],
                np.array(masks[site], dtype=np.uint64),
                bound=100,
                modulus=parameters.plain_modulus,
            ),
        )
        for site in SITES
    }
    total = add_sealed(parameters, list(sealed.values()))
    return {
        "parameters": _opening_numbers(parameters),
        "context": context.decode("ascii"),
        "private_mask_keys": {site: _seed(f"mask key of {site}").hex() for site in SITES},
        "public_key": base64.b64encode(key.public_bytes).decode("ascii"),
        # The auditor's own file holds it in SEAL's NTT form, 8 bytes little endian each.
        "secret_key": base64.b64encode(key.to_bytes()[-32 - 8 * 4096 : -32]).decode("ascii"),
        "contributions": {
            site: base64.b64encode(one).decode("ascii") for site, one in sealed.items()
        },
        "vectors": {site: one.tolist() for site, one in vectors.items()},
        "sum_sha256": hashlib.sha256(total).hexdigest(),
        "opened": [int(one) for one in key.open_sum(total, bound=300)],
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
}
RANDOMISED = frozenset({"sealed.json"})


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
