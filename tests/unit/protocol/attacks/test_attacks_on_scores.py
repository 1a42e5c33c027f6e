"""A coordinator that answers sites as it likes, to read one site's picks in the opened demand.

Scores travel under a site's own key, so the coordinator reads none of them. But it chooses what
it multiplies, and it learns how many sites want each sample. Where it silences two of three
sites, the opened demand is the third one's; where it puts a ladder of levels into that one's
scores, the picks are its utilities. Before the coordinator was bound to one matrix for a round,
the ladder below gave six utilities to within 0.03, in one round, and the auditor opened it.

Everything is real but the models: keys, queries, scores, masks, sums, and the auditor.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lying_scorer import (
    CELLS,
    LEVELS,
    OTHERS,
    PLAN,
    POOL,
    READ,
    STEP,
    THRESHOLD,
    VICTIM,
    Answer,
    assert_refused,
    bare,
    ladder,
    make_sites,
    queried,
    query_of,
    read_ladder,
    recovered,
    shifted,
    silence,
    to_opening,
)
from protocol_world import make_plan
from simulated_coordinator import SimulatedCoordinator
from simulated_parties import World, bring_together, make_auditor, make_world
from simulated_site import THREE, SimulatedSite, scores_of

from lada_clients.auditor.opening import SumOpening
from lada_clients.auditor.runner import write_export
from lada_protocol.evidence.export import MESSAGES_FILE
from lada_protocol.evidence.study import verify_evidence
from lada_protocol.kinds import Kind
from lada_protocol.rounds.blind_scoring import ROW_BOUND
from lada_protocol.rounds.index import Attempt
from lada_protocol.rounds.secure_aggregation import opened_values
from lada_protocol.rounds.site import next_site_task
from lada_protocol.rounds.tasks import Post, Wait
from lada_secure.encryption.matrix import encode_matrix
from lada_secure.encryption.parameters import (
    HEADER_BYTES,
)
from lada_secure.errors import PeerError
from lada_secure.method.plan import DEMAND


def _constants(world: World, site: str) -> bytes:
    """Everybody else gets one number below the threshold, properly encrypted."""
    if site == VICTIM:
        return scores_of(ladder(), query_of(world, site))
    return shifted(scores_of(np.full((POOL, CELLS), 1e-5), query_of(world, site)), -0.5)


def _another_matrix(world: World, site: str) -> bytes:
    """The committed matrix for all others; only the victim's answers are the ladder's."""
    rows = ladder() if site == VICTIM else world.coordinator.features
    return scores_of(rows, query_of(world, site))


def _another_matrix_for_all(world: World, site: str) -> bytes:
    """One matrix for all, but not the one that was committed to."""
    return scores_of(ladder(), query_of(world, site))


def _another_query(world: World, site: str) -> bytes:
    """The victim's answers are computed from another site's query."""
    asked = OTHERS[0] if site == VICTIM else site
    return scores_of(world.coordinator.features, query_of(world, asked))


def _raised(world: World, site: str) -> bytes:
    """The right scores, raised for one site and lowered for the others."""
    honest = scores_of(world.coordinator.features, query_of(world, site))
    return shifted(honest, 0.1 if site == VICTIM else -0.9)


def _one_step(world: World, site: str) -> bytes:
    """The right scores but for one last bit of one coefficient, for one site."""
    honest = bytearray(scores_of(world.coordinator.features, query_of(world, site)))
    if site == VICTIM:
        honest[HEADER_BYTES] ^= 1
    return bytes(honest)


def _made_again(world: World, site: str) -> bytes:
    """The right scores in another ciphertext: a multiple of the query that rounds to nothing."""
    rows = world.coordinator.features.copy()
    if site == VICTIM:
        rows[0, 0] += 1e-7
        rows[0, 1] -= 1e-7
    return scores_of(rows, query_of(world, site))


@pytest.mark.parametrize(
    "answer",
    [
        silence,
        _constants,
        _another_matrix,
        _another_matrix_for_all,
        _another_query,
        _raised,
        _one_step,
        _made_again,
    ],
)
def test_answers_that_do_not_follow_from_the_committed_matrix_open_nothing(
    tmp_path: Path, answer: Answer
) -> None:
    world = make_sites(tmp_path)
    queried(world)
    for site in THREE:
        world.coordinator.score(0, site, payload=answer(world, site))

    attempt = to_opening(world)

    fault = assert_refused(world, attempt, "wrong_scores")
    assert any(site in fault.message for site in THREE)


def test_what_the_ladder_would_have_given_is_six_utilities(tmp_path: Path) -> None:
    """This is what was opened before: the sum of the picks, which are the victim's alone."""
    world = make_sites(tmp_path)
    queried(world)
    for site in THREE:
        world.coordinator.score(0, site, payload=silence(world, site))
    attempt = to_opening(world)

    total = sum(site.vector(attempt) for site in world.sites.values())

    secret = world.sites[VICTIM].utilities[0][:READ]
    assert np.abs(read_ladder(total) - secret).max() <= 0.03
    assert_refused(world, attempt, "wrong_scores")


def test_a_refused_demand_ends_the_study_and_is_refused_after_a_restart_too(
    tmp_path: Path,
) -> None:
    world = make_sites(tmp_path)
    queried(world)
    for site in THREE:
        world.coordinator.score(0, site, payload=silence(world, site))
    attempt = to_opening(world)
    world.auditor = make_auditor(world.cast, world.board, tmp_path / "auditor")
    assert_refused(world, attempt, "wrong_scores")

    # A coordinator that goes on all the same: the same scores stand in their places.
    again = Attempt(round_id=0, purpose=DEMAND, number=1)
    world.coordinator.carry_out(Post(kind=Kind.COHORT, attempt=again, sites=THREE))
    bring_together(world, again, THREE)
    world.coordinator.carry_out(Post(kind=Kind.SUM, attempt=again, sites=THREE))

    assert_refused(world, again, "wrong_scores")


def test_honest_answers_are_opened(tmp_path: Path) -> None:
    world = make_sites(tmp_path)
    queried(world)
    for site in THREE:
        world.coordinator.score(0, site)

    attempt = to_opening(world)

    assert world.answer(attempt).kind is Kind.OPENED
    assert len(recovered(world)) == 1


@pytest.mark.parametrize("site", THREE)
def test_bare_numbers_are_refused_by_the_site_that_gets_them(tmp_path: Path, site: str) -> None:
    """The coordinator knows what they decrypt to, and so knows that site's picks."""
    world = make_sites(tmp_path)
    queried(world)
    for name in THREE:
        payload = bare(-0.5) if name == site else None
        world.coordinator.score(0, name, payload=payload)

    with pytest.raises(PeerError) as caught:
        to_opening(world)

    assert caught.value.reason == "transparent"
    assert recovered(world) == []


def test_bare_numbers_are_refused_by_the_auditor_where_a_site_took_them(tmp_path: Path) -> None:
    world = make_sites(tmp_path)
    queried(world)
    for name in THREE:
        world.coordinator.score(0, name, payload=None if name == VICTIM else bare(-0.5))
    for name in OTHERS:
        # Colluding sites: they want nothing, so that the sum is the victim's.
        world.sites[name].vector = lambda _attempt: np.zeros(POOL, dtype=np.int64)  # type: ignore[method-assign]

    assert_refused(world, to_opening(world), "wrong_scores")


@pytest.mark.parametrize(
    "committed",
    [
        b"",
        b"matrix",
        lambda good: good[:-1],
        lambda good: good + b"\0",
        lambda good: b"LSM0" + good[4:],
        lambda good: good[:4] + bytes(32) + good[36:],
        lambda good: good[:36] + b"\xff\xff\xff\x7f" * ((len(good) - 36) // 4),
    ],
    ids=["empty", "words", "cut", "longer", "magic", "digest", "large values"],
)
def test_a_commitment_that_is_no_matrix_opens_nothing(tmp_path: Path, committed: Any) -> None:
    world = make_sites(tmp_path)
    good = encode_matrix(world.coordinator.features, row_bound=ROW_BOUND)
    made = committed if isinstance(committed, bytes) else committed(good.to_bytes())
    world.coordinator.committed = made
    queried(world)
    for site in THREE:
        world.coordinator.score(0, site)

    assert_refused(world, to_opening(world), "wrong_matrix")


@pytest.mark.parametrize("without", [OTHERS, OTHERS[:1], (VICTIM,)], ids="-".join)
def test_a_site_that_contributes_without_scores_is_not_counted_in(
    tmp_path: Path, without: tuple[str, ...]
) -> None:
    """Scores withheld from some: honest sites wait for them, and those that do not are found."""
    world = make_sites(tmp_path)
    queried(world)
    for site in THREE:
        if site not in without:
            world.coordinator.score(0, site)
    for name in without:
        me = world.sites[name].me
        me.sync()
        task = next_site_task(me.index, site=name)
        assert isinstance(task, Wait)
        assert task.step == "scoring"
        _collude(world.sites[name])

    fault = assert_refused(world, to_opening(world), "missing_scores")
    assert any(site in fault.message for site in without)


def _collude(site: SimulatedSite) -> None:
    """It contributes zeros and says that they rest on something."""
    wait = site._contribute

    def contribute(attempt: Attempt, cohort: tuple[str, ...]) -> None:
        invented = site.me.index.find(Kind.CLUSTERS, sender="coordinator")
        assert invented is not None
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("simulated_site.basis_of", lambda *_a, **_k: invented)
            patch.setattr(site, "vector", lambda _attempt: np.zeros(POOL, dtype=np.int64))
            wait(attempt, cohort)

    site._contribute = contribute  # type: ignore[method-assign]


def _export(world: World, folder: Path) -> dict[str, bytes]:
    """What the auditor would hand to anybody."""
    identity, out = folder / "identity", folder / "export"
    identity.mkdir()
    (identity / "ca.crt").write_bytes(world.cast.ca_pem)
    write_export(out, world.auditor.participant, world.auditor.ledgers, identity=identity)
    return {
        str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()
    }


def test_an_opened_demand_without_its_scores_is_found_offline(tmp_path: Path) -> None:
    world = make_world(tmp_path, plan=make_plan(rounds=1))
    world.run()
    files = _export(world, tmp_path)
    assert verify_evidence(files).faults == ()
    lines = files[MESSAGES_FILE].splitlines(keepends=True)
    for kind, words in (
        ("matrix", "committed to no matrix"),
        ("scores", "has sent nothing that site-"),
        ("query", "without a query"),
    ):
        mark = f'\\"kind\\":\\"{kind}\\"'.encode("ascii")
        cut = next(line for line in lines if mark in line)
        less = b"".join(line for line in lines if line is not cut)
        faults = verify_evidence({**files, MESSAGES_FILE: less}).faults
        assert any(one.startswith("openings/0-demand.json") and words in one for one in faults)


def test_what_an_auditor_opened_without_its_check_is_found_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SumOpening, "_check_scores", lambda *_: None)
    world = make_world(tmp_path, plan=make_plan(rounds=1))
    answer = SimulatedCoordinator.score
    monkeypatch.setattr(
        SimulatedCoordinator,
        "score",
        lambda self, round_id, site: answer(
            self, round_id, site, **({"matrix": "e" * 64} if site == VICTIM else {})
        ),
    )
    # Sites do not sign a transcript that lists another matrix than their scores name.
    with pytest.raises(PeerError) as caught:
        world.run()
    assert caught.value.reason == "bad_transcript"
    assert len(recovered(world)) == 1

    faults = verify_evidence(_export(world, tmp_path)).faults

    assert any("name matrix eeeeeeeeeeeeeeee" in one for one in faults)


def test_a_ladder_for_all_shows_the_utilities_of_all_but_not_whose_they_are(
    tmp_path: Path,
) -> None:
    """A limit that stays: the coordinator chooses the matrix, and counts over three are small.

    Whoever colludes with all sites but one takes theirs away and has the one's. Utilities are
    computed from noised statistics, so what the ledger says holds for them all the same.
    """
    world = make_sites(tmp_path)
    world.coordinator.features = ladder()
    queried(world)
    for site in THREE:
        world.coordinator.score(0, site)
    opened = world.answer(to_opening(world))
    assert opened.kind is Kind.OPENED

    counts = np.array(opened_values(world.board.payload(opened.message_hash), PLAN, DEMAND))

    by_level = counts.reshape(READ, len(LEVELS))
    read = [
        [THRESHOLD + ((row >= rank).sum() - 0.5) * STEP for rank in (3, 2, 1)] for row in by_level
    ]
    true = np.sort([site.utilities[0][:READ] for site in world.sites.values()], axis=0).T
    assert np.abs(np.array(read) - true).max() <= 0.03
