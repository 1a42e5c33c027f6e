"""Vectors of parameters, masks, sealed sums and encrypted scores."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from generate_world import (
    ATTEMPT,
    SITES,
    Vectors,
    digest_of,
    mask_key,
    mask_messages,
    seed_of,
    the_plan,
    the_roster,
)

from lada_protocol.rounds.secure_aggregation import (
    keys_digest,
    mask_context,
    purpose_length,
    purpose_parameters,
    site_bound_of,
)
from lada_secure.canonical import canonical_json, sha256_hex
from lada_secure.encryption.aggregate_key import AggregateKey
from lada_secure.encryption.blind_scores import PoolMatrix
from lada_secure.encryption.masks import masked, pairwise_mask
from lada_secure.encryption.matrix import encode_matrix
from lada_secure.encryption.parameters import (
    AggregationParameters,
    aggregation_parameters,
    scoring_parameters,
)
from lada_secure.encryption.scoring_key import ScoringKey
from lada_secure.encryption.sealing import SealedSum, parse_public_key, seal
from lada_secure.method.plan import DEMAND, STATISTICS
from lada_secure.models.identity import ModelIdentity


def _opening_numbers(parameters: AggregationParameters) -> Vectors:
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
    plan = the_plan()
    return {
        "plan": plan.to_bytes().decode("ascii"),
        "plan_hash": plan.hash,
        "derived": {
            purpose: {
                "length": purpose_length(plan, purpose),
                "site_bound": site_bound_of(plan, purpose),
                "sum_bound": purpose_parameters(plan, purpose).sum_bound,
                "parameters_digest": purpose_parameters(plan, purpose).digest,
            }
            for purpose in (STATISTICS, DEMAND)
        },
        "slms": [
            {
                "slm": (raw := canonical_json(slm.model_dump())).decode("ascii"),
                "sha256": sha256_hex(raw),
                "allowed": not plan.slm.faults(slm),
            }
            for slm in _slms()
        ],
    }


def _slms() -> Iterator[ModelIdentity]:
    """What sites accept with: on and beyond every bound of the plan."""
    fine: dict[str, Any] = {
        "architecture": "LlamaForCausalLM",
        "parameters": 134_515_008,
        "licence": "Apache-2.0",
        "revision": "main",
        **{
            f"{part}_sha256": digest_of(f"{part} of the SLM")
            for part in ("weights", "tokenizer", "template")
        },
    }
    for change in (
        {},
        {"architecture": "GPT2LMHeadModel", "licence": "MIT", "revision": ""},
        {"parameters": 10**9},
        {"parameters": 10**9 + 1},
        {"architecture": "llamaforcausallm"},
        {"licence": ""},
        {"licence": "apache-2.0"},
    ):
        yield ModelIdentity(**{**fine, **change})


def parameter_vectors() -> Vectors:
    """Parameter sets of secure aggregations and of blind scoring."""
    openings = [(1, 1), (4096, 16), (4097, 1000), (100_000, 2**20), (1_000_000, 10**9), (10, 77)]
    scorings = [(1, 1), (64, 1), (64, 64), (100, 7), (1024, 1024)]
    return {
        "opening": [
            _opening_numbers(aggregation_parameters(length=length, sum_bound=bound))
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
    public = {site: mask_key(site).public_bytes for site in SITES}
    return {
        site: pairwise_mask(
            mask_key(site),
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
    keys = mask_messages()
    digest = keys_digest(keys)
    context = mask_context(the_plan(), the_roster(), ATTEMPT, digest)
    return {
        "private_keys": {site: seed_of(f"mask key of {site}").hex() for site in SITES},
        "public_keys": {site: mask_key(site).public_bytes.hex() for site in SITES},
        "messages": {site: one.message_hash for site, one in keys.items()},
        "keys_digest": digest,
        "study_id": the_plan().study_id,
        "plan_hash": the_plan().hash,
        "roster_hash": the_roster().hash,
        "round_id": ATTEMPT.round_id,
        "purpose": ATTEMPT.purpose,
        "attempt": ATTEMPT.number,
        "context": context.decode("ascii"),
        "masks": [
            {"length": length, "modulus": modulus, "masks": _masks(length, modulus, context)}
            for length, modulus in ((8, 65537), (20, 4294828033), (20, 4398046150657))
        ],
    }


def sealed_vectors() -> Vectors:
    """Three sealed contributions, the aggregate key's halves, and what their sum opens to."""
    parameters = aggregation_parameters(length=10, sum_bound=300)
    context = b"vector of a sealed sum"
    masks = _masks(parameters.length, parameters.plain_modulus, context)
    vectors = {
        site: np.array([(7 * number + 31 * entry) % 201 - 100 for entry in range(10)])
        for number, site in enumerate(SITES)
    }
    key = AggregateKey.generate(parameters)
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
    running = SealedSum(parameters)
    for contribution in sealed.values():
        running.add(contribution)
    total = running.to_bytes()
    return {
        "parameters": _opening_numbers(parameters),
        "context": context.decode("ascii"),
        "private_mask_keys": {site: seed_of(f"mask key of {site}").hex() for site in SITES},
        "public_key": base64.b64encode(key.public_bytes).decode("ascii"),
        # The auditor's own file holds it in SEAL's NTT form, 8 bytes little endian each.
        "secret_key": base64.b64encode(key.to_bytes()[-32 - 8 * 4096 : -32]).decode("ascii"),
        "contributions": {
            site: base64.b64encode(one).decode("ascii") for site, one in sealed.items()
        },
        "vectors": {site: one.tolist() for site, one in vectors.items()},
        "sum_sha256": hashlib.sha256(total).hexdigest(),
        "opened": [int(one) for one in key.open_sum(total)],
    }


def score_vectors() -> Vectors:
    """A query of two cells, scored over three pool samples; the site's key is given.

    Scores follow from query and committed matrix to the last bit.
    """
    utilities = np.array([0.75, -0.375])
    matrix = np.array([[0.5, 0.25], [0.0, 1.0], [1.0, 0.0]])
    key = ScoringKey.generate(2, row_bound=1)
    query = key.encrypt(utilities)
    committed = encode_matrix(matrix, row_bound=1)
    pool = PoolMatrix(committed)
    scores = pool.score(query)
    return {
        "cells": 2,
        "row_bound": 1,
        "digest": key.parameters.digest,
        # The site's own file holds it in SEAL's NTT form, 8 bytes little endian each.
        "secret_key": base64.b64encode(key.to_bytes()[-32 - 8 * 4096 : -32]).decode("ascii"),
        "utilities": utilities.tolist(),
        "query": base64.b64encode(query).decode("ascii"),
        "matrix": matrix.tolist(),
        "committed": base64.b64encode(committed.to_bytes()).decode("ascii"),
        "scores": base64.b64encode(scores).decode("ascii"),
        "decrypted": key.decrypt(scores, len(matrix)).tolist(),
    }
