"""What coordinator, auditor and colluding sites learn when they pool everything they hold.

SPEC.md, "Collusion", is this file in prose. What the pool holds: the auditor's aggregate key, every
message on the board, and the mask keys and vectors of the colluding sites.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from simulated_parties import World, bring_together, make_world
from simulated_site import FOUR, ROUND_0, ROUND_0_AGAIN, THREE

from lada_protocol.kinds import Kind
from lada_protocol.rounds.index import Attempt
from lada_protocol.rounds.secure_aggregation import keys_digest, mask_context, purpose_parameters
from lada_protocol.wire.messages import MaskKeyBody, parse_body
from lada_secure.encryption.masks import MaskKey, pairwise_mask
from lada_secure.method.plan import STATISTICS

# Chance of a false alarm of each statistical test here.
ALPHA = 1e-6
VICTIM = "site-a"


def _decrypted(world: World, attempt: Attempt, site: str) -> np.ndarray:
    """A single contribution under the auditor's key: masked vector modulo t."""
    message = world.coordinator.index.at(Kind.CONTRIBUTION, attempt, sender=site)
    assert message is not None
    key = world.auditor.opening.key(attempt.purpose)
    centred = key.open(world.board.payload(message.message_hash))
    return np.mod(centred, key.parameters.plain_modulus)


def _shared_masks(
    world: World, attempt: Attempt, site: str, colluders: tuple[str, ...]
) -> np.ndarray:
    """The part of a site's mask that the colluders can compute: what they share with it."""
    parameters = purpose_parameters(world.plan, attempt.purpose)
    keys = world.coordinator.index.all_at(Kind.MASK_KEY, attempt)
    public = bytes.fromhex(parse_body(keys[site], MaskKeyBody).public_key)
    context = mask_context(
        world.plan, world.cast.roster, attempt, keys_digest(dict(sorted(keys.items())))
    )
    total = np.zeros(parameters.length, dtype=np.int64)
    for colluder in colluders:
        theirs = pairwise_mask(
            world.sites[colluder].mask_keys[attempt],
            colluder,
            {site: public},
            context=context,
            length=parameters.length,
            modulus=parameters.plain_modulus,
        )
        # A pair's two masks cancel, so the victim's is the negative of the colluder's.
        total -= theirs.astype(np.int64)
    return np.mod(total, parameters.plain_modulus)


def _centred(values: np.ndarray, modulus: int) -> np.ndarray:
    values = np.mod(values, modulus)
    return np.where(values > modulus // 2, values - modulus, values)


def test_with_all_other_sites_colluding_the_noised_vector_is_left_and_nothing_more(
    tmp_path: Path,
) -> None:
    world = make_world(tmp_path, sites=FOUR)
    world.to_sum()
    modulus = purpose_parameters(world.plan, STATISTICS).plain_modulus
    colluders = ("site-b", "site-c", "site-d")
    masked = _decrypted(world, ROUND_0, VICTIM)
    shared = _shared_masks(world, ROUND_0, VICTIM, colluders)

    left = _centred(masked - shared, modulus)

    # Exactly the value that the ledger released: the site's own noise is still in it.
    noised = world.sites[VICTIM].vector(ROUND_0)
    assert left.tolist() == noised.tolist()
    # Nothing more: all that the victim sent follows from the noised vector and from what the
    # pool holds already, so the pool could have computed it without the victim.
    assert np.mod(noised + shared, modulus).tolist() == masked.tolist()


def test_with_two_honest_sites_only_their_sum_is_left(tmp_path: Path) -> None:
    world = make_world(tmp_path, sites=FOUR)
    world.to_sum()
    modulus = purpose_parameters(world.plan, STATISTICS).plain_modulus
    honest, colluders = ("site-a", "site-b"), ("site-c", "site-d")

    left = {
        site: np.mod(
            _decrypted(world, ROUND_0, site) - _shared_masks(world, ROUND_0, site, colluders),
            modulus,
        )
        for site in honest
    }

    vectors = {site: world.sites[site].vector(ROUND_0) for site in honest}
    total = _centred(left["site-a"] + left["site-b"], modulus)
    assert total.tolist() == (vectors["site-a"] + vectors["site-b"]).tolist()
    # Each alone still carries the mask of the honest pair, another value in every entry.
    mask = np.mod(left["site-a"] - vectors["site-a"], modulus)
    assert np.mod(vectors["site-b"] - left["site-b"], modulus).tolist() == mask.tolist()
    assert np.count_nonzero(mask) == mask.size
    # Every split of the sum is explained by some mask of the pair: take any other vector.
    other = vectors["site-a"] + np.arange(mask.size)
    explained = np.mod(left["site-a"] - other, modulus)
    rest = np.mod(left["site-b"] + explained, modulus)
    assert _centred(other + rest, modulus).tolist() == total.tolist()


@pytest.mark.parametrize("modulus", [65537, 1073692673], ids=["17 bits", "30 bits"])
def test_the_mask_of_an_honest_pair_is_uniform_whatever_it_hides(modulus: int) -> None:
    # Chi-square over 64 cells, n = 40,000: catches a cell that is off by 25% at alpha 1e-6.
    ours, theirs = MaskKey.generate(), MaskKey.generate()
    mask = pairwise_mask(
        ours,
        "site-a",
        {"site-b": theirs.public_bytes},
        context=b"a test",
        length=40_000,
        modulus=modulus,
    )
    hidden = np.mod(mask.astype(np.int64) + 1000, modulus)

    counts = np.bincount(hidden * 64 // modulus, minlength=64)

    sizes = np.diff([-(-cell * modulus // 64) for cell in range(65)])
    expected = sizes / modulus * hidden.size
    found = stats.chisquare(counts, expected)
    assert found.pvalue > ALPHA, f"p = {found.pvalue}, false alarms at {ALPHA}"


def test_the_coordinator_alone_cannot_open_even_the_sum(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    due = world.to_sum()
    total = world.coordinator.add_up(ROUND_0, due.sites)
    sealed = world.board.payload(total.message_hash)
    true_sum = np.sum([one.vector(ROUND_0) for one in world.sites.values()], axis=0)

    # Whatever key it makes itself, what it decrypts has nothing to do with the sum.
    key = type(world.auditor.opening.key(STATISTICS)).generate(
        purpose_parameters(world.plan, STATISTICS)
    )
    from lada_secure.errors import PeerError

    with pytest.raises(PeerError) as caught:
        key.open_sum(sealed)

    assert caught.value.reason == "out_of_range"
    assert str(true_sum[0]) not in str(caught.value)


def test_a_coordinator_and_an_auditor_that_collude_over_two_attempts_get_a_noised_vector(
    tmp_path: Path,
) -> None:
    # The stated limit of retries: masks protect a site from a colluding coordinator and auditor
    # for one attempt. Two attempts with cohorts that differ by one site give that site's noised
    # vector. An honest auditor opens one of them, ever.
    world = make_world(tmp_path, sites=FOUR)
    world.to_sum()
    world.coordinator.post_at(Kind.ABORT, ROUND_0, {"code": "timeout", "message": "again"})
    world.coordinator.post_at(Kind.COHORT, ROUND_0_AGAIN, {"sites": list(THREE)})
    bring_together(world, ROUND_0_AGAIN, THREE)
    modulus = purpose_parameters(world.plan, STATISTICS).plain_modulus

    both = [
        sum(_decrypted(world, attempt, site) for site in cohort)
        for attempt, cohort in ((ROUND_0, FOUR), (ROUND_0_AGAIN, THREE))
    ]

    left = _centred(np.asarray(both[0] - both[1]), modulus)
    assert left.tolist() == world.sites["site-d"].vector(ROUND_0).tolist()
