"""The study of the test vectors: keys from fixed names, a roster, a plan, messages."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from lada_protocol.identity.roster import Party, Roster
from lada_protocol.kinds import Kind, Role
from lada_protocol.plan import StudyPlan, parse_plan
from lada_protocol.rounds.index import Attempt
from lada_protocol.wire.envelope import Envelope, Header, sign_envelope
from lada_secure.canonical import canonical_json
from lada_secure.encryption.masks import MaskKey
from lada_secure.method.plan import STATISTICS

SITES = ("site-a", "site-b", "site-c")
ATTEMPT = Attempt(round_id=0, purpose=STATISTICS, number=1)
Vectors = dict[str, Any]


def seed_of(name: str) -> bytes:
    return hashlib.sha256(f"lada test vectors: {name}".encode("ascii")).digest()


def signing_key(party: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(seed_of(f"signing key of {party}"))


def mask_key(site: str) -> MaskKey:
    return MaskKey.from_secret_bytes(seed_of(f"mask key of {site}"))


def digest_of(name: str) -> str:
    return seed_of(name).hex()


def the_roster() -> Roster:
    roles = {"auditor": Role.AUDITOR, "coordinator": Role.COORDINATOR}
    return Roster(
        study_ca=digest_of("study CA"),
        parties=tuple(
            Party(
                id=name,
                role=roles.get(name, Role.SITE),
                tls_fingerprint=digest_of(f"TLS certificate of {name}"),
                signing_fingerprint=digest_of(f"signing certificate of {name}"),
                signing_key=signing_key(name).public_key().public_bytes_raw().hex(),
            )
            for name in ("auditor", "coordinator", *SITES)
        ),
    )


def the_plan() -> StudyPlan:
    return parse_plan(
        canonical_json(
            {
                "version": 2,
                "study_id": "vectors-1",
                "title": "Gr\u00fc\u00dfe \U0001f44b",
                "coordinator": "coordinator",
                "expires": "2030-01-31T12:00:00Z",
                "rounds": 2,
                "min_cohort": 3,
                "max_cohort": 5,
                "slm": {
                    "families": ["LlamaForCausalLM", "GPT2LMHeadModel"],
                    "licences": ["Apache-2.0", "MIT"],
                    "max_parameters": 1000000000,
                },
                "embedder": "ngrams",
                "seed": 7,
                "pool_sha256": digest_of("pool"),
                "pool_size": 20,
                "answer_form": "reasoned",
                "verifier": {"rule": "numeric", "tolerance": 0.01},
                "clusters_sha256": digest_of("clusters"),
                "phase_timeout_s": 60.0,
                "privacy": {
                    "adjacency": "add_or_remove_one_unit",
                    "unit": "patient",
                    "target_delta": 1e-05,
                    "epsilon_cap": 8.0,
                    "max_records_per_unit": 4,
                    "max_units": 100,
                    "ledger_time_step_s": 3600,
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
                "paths": {
                    "budget": 10,
                    "max_new_tokens": 32,
                    "attempts": 2,
                    "temperature": 0.7,
                    "top_p": 0.95,
                    "keep": "shortest",
                },
            }
        )
    )


def message(
    kind: Kind, sender: str, body: Mapping[str, Any], payload: bytes = b"", **place: Any
) -> Envelope:
    header = Header(
        **{
            "kind": kind.value,
            "study_id": the_plan().study_id,
            "plan_hash": the_plan().hash,
            "roster_hash": the_roster().hash,
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
    return sign_envelope(header, signing_key(sender))


def in_attempt(kind: Kind, sender: str, body: Mapping[str, Any]) -> Envelope:
    return message(
        kind,
        sender,
        body,
        round_id=ATTEMPT.round_id,
        purpose=ATTEMPT.purpose,
        attempt=ATTEMPT.number,
    )


def mask_messages() -> dict[str, Envelope]:
    return {
        site: in_attempt(Kind.MASK_KEY, site, {"public_key": mask_key(site).public_bytes.hex()})
        for site in SITES
    }
