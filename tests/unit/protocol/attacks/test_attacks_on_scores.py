"""A coordinator that answers sites as it likes, to read one site's picks in the opened demand.

Scores travel under a site's own key, so the coordinator reads none of them. But it chooses what
it multiplies, and it learns how many sites want each sample. Where it silences two of three
sites, the opened demand is the third one's; where it puts a ladder of levels into that one's
scores, the picks are its utilities. Before the coordinator was bound to one matrix for a round,
the ladder below gave six utilities to within 0.03, in one round, and the auditor opened it.

Everything is real but the models: keys, queries, scores, masks, sums, and the auditor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from protocol_world import MemoryBoard, make_plan, statistics_spec
from simulated_parties import (
    THREE,
    SimulatedCoordinator,
    SimulatedSite,
    World,
    bring_together,
    make_auditor,
    make_world,
    notes,
    owes,
    refusal,
    scores_of,
)

from lada_clients.auditor.opening import SumOpening
from lada_clients.auditor.runner import write_export
from lada_clients.net.study_folder import SecretFolder
from lada_clients.site.exchanges import SiteExchanges
from lada_protocol.evidence.export import MESSAGES_FILE
from lada_protocol.evidence.study import verify_evidence
from lada_protocol.identity.roster import Party
from lada_protocol.kinds import Kind
from lada_protocol.rounds.blind_scoring import ROW_BOUND, scoring_parameters_of
from lada_protocol.rounds.index import Attempt
from lada_protocol.rounds.secure_aggregation import opened_values
from lada_protocol.rounds.site import next_site_task
from lada_protocol.rounds.tasks import Post, Wait
from lada_protocol.wire.envelope import Envelope
from lada_protocol.wire.messages import FaultBody
from lada_secure.allocation.selection import pick
from lada_secure.encryption.matrix import encode_matrix
from lada_secure.encryption.parameters import (
    HEADER_BYTES,
    POLY_MODULUS_DEGREE,
    SCORING_COEFFICIENT_BYTES,
    SCORING_MODULUS,
)
from lada_secure.encryption.parsing import pack, unpack
from lada_secure.errors import PeerError
from lada_secure.method.plan import DEMAND, STATISTICS, AllocationPlan
from lada_secure.privacy.released import post_process

CELLS, THRESHOLD, STEP = 12, 0.2, 0.03
LEVELS = np.arange(THRESHOLD, 1.0, STEP)
# Of these cells the ladder reads the utility.
READ = 6
POOL = READ * len(LEVELS)
PLAN = make_plan(
    pool_size=POOL,
    allocation=AllocationPlan(
        strategy="band",
        clusters=6,
        difficulty_bins=2,
        quota=POOL,
        threshold=THRESHOLD,
        exploration_weight=0.1,
        screen_low=0.0,
        screen_high=1.0,
    ),
)
VICTIM, OTHERS = "site-a", ("site-b", "site-c")


def ladder() -> np.ndarray:
    """Row (cell, level): the score reaches the threshold exactly where the utility is above it."""
    rows = np.zeros((POOL, CELLS))
    for cell in range(READ):
        rows[cell * len(LEVELS) : (cell + 1) * len(LEVELS), cell] = THRESHOLD / LEVELS
    return rows


def read_ladder(demand: np.ndarray) -> np.ndarray:
    """The utilities of the first cells, as the levels that were picked say; 0 where none was."""
    reached = demand.reshape(READ, len(LEVELS)).sum(axis=1)
    return np.where(reached > 0, THRESHOLD + (reached - 0.5) * STEP, 0.0)


@dataclass(kw_only=True)
class PickingSite(SimulatedSite):
    """A site that picks by the scores it was sent, through the code of the real one."""

    secrets: SecretFolder

    @property
    def scoring(self) -> SiteExchanges:
        return SiteExchanges(participant=self.me, secrets=self.secrets)

    def ask(self, round_id: int) -> None:
        plan = self.me.plan
        released = self.book.release(
            statistics_spec(plan, round_id),
            compute=lambda _paid: b"noised statistics",
            encode=bytes,
            decode=bytes,
        )
        utilities = post_process(released, lambda _: self.utilities[0], label="cell utilities")
        self.scoring.ask_scores(round_id, utilities)

    def vector(self, attempt: Attempt) -> np.ndarray:
        if attempt.purpose != DEMAND:
            return super().vector(attempt)
        allocation = self.me.plan.allocation
        wanted = np.zeros(POOL, dtype=np.int64)
        scores = self.scoring.read_scores(attempt.round_id)
        if scores is not None:
            picked = pick(scores, scores >= allocation.threshold, quota=allocation.quota, seed=0)
            wanted[picked] = 1
        return wanted


@dataclass
class TwoFacedBoard(MemoryBoard):
    """A board that hides single messages from single readers."""

    hidden: set[tuple[str, str]] = field(default_factory=set)

    def visible(self, party: Party, after: int) -> list[tuple[int, Envelope]]:
        return [
            (number, one)
            for number, one in super().visible(party, after)
            if (party.id, one.message_hash) not in self.hidden
        ]


def make_sites(folder: Path) -> World:
    """Three sites with utilities of their own, before the first round."""
    world = make_world(folder, sites=THREE, plan=PLAN)
    rng = np.random.default_rng(11)
    for name, old in world.sites.items():
        world.sites[name] = PickingSite(
            me=old.me,
            book=old.book,
            utilities={0: rng.uniform(THRESHOLD, 1.0, CELLS)},
            secrets=SecretFolder(folder=folder / name / "secrets"),
        )
    return world


def queried(world: World, round_id: int = 0) -> None:
    """Run until every site has asked in this round and nobody is answered."""
    for _ in range(400):
        task = world.coordinator.next()
        answering = owes(task, Kind.SCORES) and task.round_id == round_id
        asked = [
            one
            for one, _ in world.board.rows
            if one.kind is Kind.QUERY and one.header.round_id == round_id
        ]
        if answering and len(asked) == len(THREE):
            return
        if not answering:
            world.coordinator.step()
        world.auditor_step()
        for site in world.sites.values():
            site.step()
    raise AssertionError("the queries were never posted")


def query_of(world: World, site: str, round_id: int = 0) -> bytes:
    """What a site has asked."""
    found = world.coordinator.index.find(
        Kind.QUERY, sender=site, to="coordinator", round_id=round_id
    )
    assert found is not None
    return world.board.payload(found.message_hash)


def to_opening(world: World, round_id: int = 0) -> Attempt:
    """The coordinator names the cohort, the sites contribute, the sum is on the board."""
    attempt = Attempt(round_id=round_id, purpose=DEMAND, number=0)
    world.coordinator.sync()
    world.coordinator.carry_out(Post(kind=Kind.COHORT, attempt=attempt, sites=THREE))
    bring_together(world, attempt, THREE)
    world.coordinator.carry_out(Post(kind=Kind.SUM, attempt=attempt, sites=THREE))
    return attempt


def recovered(world: World) -> list[Envelope]:
    """What the coordinator has of anybody's picks and utilities: the demands that were opened."""
    return [
        one
        for one, _ in world.board.rows
        if one.kind is Kind.OPENED and one.header.purpose == DEMAND
    ]


def assert_refused(world: World, attempt: Attempt, code: str) -> FaultBody:
    """The auditor opens nothing, has claimed nothing, and names the coordinator."""
    fault = refusal(world, attempt)
    assert fault.code == code, fault.message
    assert "coordinator" in fault.message
    assert recovered(world) == []
    assert not [name for name in notes(world) if name.endswith(f"{attempt.round_id}-{DEMAND}")]
    return fault


def shifted(scores: bytes, by: float) -> bytes:
    """Add one number to every score: a constant polynomial is the same constant in NTT form."""
    bits = scoring_parameters_of(PLAN).query_scale_bits
    bits += scoring_parameters_of(PLAN).matrix_scale_bits
    body = unpack(scores[HEADER_BYTES:], SCORING_COEFFICIENT_BYTES).astype(object)
    blocks = body.reshape(-1, 2, POLY_MODULUS_DEGREE)
    blocks[:, 0] = (blocks[:, 0] + round(by * 2**bits)) % SCORING_MODULUS
    return scores[:HEADER_BYTES] + pack(
        blocks.astype(np.uint64).reshape(-1), SCORING_COEFFICIENT_BYTES
    )


def bare(value: float) -> bytes:
    """Scores that are all one number, not encrypted at all: the second polynomial is zero."""
    parameters = scoring_parameters_of(PLAN)
    empty = bytes(parameters.scores_bytes(POOL) - HEADER_BYTES)
    return shifted(b"LSS1" + bytes.fromhex(parameters.digest) + empty, value)


Answer = Callable[[World, str], bytes]


def _silence(world: World, site: str) -> bytes:
    """Zeros to the others, the ladder to the victim."""
    rows = ladder() if site == VICTIM else np.zeros((POOL, CELLS))
    return scores_of(rows, query_of(world, site))


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
        _silence,
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
        world.coordinator.score(0, site, payload=_silence(world, site))
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
        world.coordinator.score(0, site, payload=_silence(world, site))
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


def test_whether_a_site_is_out_of_range_is_not_to_be_seen(tmp_path: Path) -> None:
    """Twice the ladder: out of range exactly where a utility is above a half.

    A site that stopped there would answer a question about its utilities by stopping. It sends
    what it always sends, and the auditor refuses the matrix.
    """
    world = make_sites(tmp_path)
    for name, site in world.sites.items():
        site.utilities[0][:] = 0.45
        site.utilities[0][0] = 0.9 if name == VICTIM else 0.45
    rows = encode_matrix(ladder(), row_bound=ROW_BOUND)
    doubled = (2 * rows.columns).astype("<i4").tobytes()
    world.coordinator.committed = rows.to_bytes()[:HEADER_BYTES] + doubled
    queried(world)
    for site in THREE:
        answer = _twice(scores_of(ladder(), query_of(world, site)))
        world.coordinator.score(0, site, payload=answer)

    attempt = to_opening(world)

    wanted = {name: site.vector(attempt).any() for name, site in world.sites.items()}
    assert wanted == {VICTIM: False, **dict.fromkeys(OTHERS, True)}
    sent = world.coordinator.index.all_at(Kind.CONTRIBUTION, attempt)
    assert len({one.header.payload_bytes for one in sent.values()}) == 1
    assert set(sent) == set(THREE)
    assert_refused(world, attempt, "wrong_matrix")


def _twice(scores: bytes) -> bytes:
    body = unpack(scores[HEADER_BYTES:], SCORING_COEFFICIENT_BYTES).astype(object)
    product = (body * 2 % SCORING_MODULUS).astype(np.uint64)
    return scores[:HEADER_BYTES] + pack(product, SCORING_COEFFICIENT_BYTES)


def test_scores_that_name_another_matrix_open_nothing(tmp_path: Path) -> None:
    world = make_sites(tmp_path)
    queried(world)
    for site in THREE:
        changes = {"matrix": "e" * 64} if site == VICTIM else {}
        world.coordinator.score(0, site, **changes)

    fault = assert_refused(world, to_opening(world), "wrong_matrix")
    assert VICTIM in fault.message


def test_a_round_without_a_matrix_opens_nothing(tmp_path: Path) -> None:
    world = make_sites(tmp_path)
    queried(world)
    matrix = world.coordinator.index.find(Kind.MATRIX, sender="coordinator", round_id=0)
    assert matrix is not None
    for site in THREE:
        world.coordinator.score(0, site)
    attempt = to_opening(world)
    # The coordinator keeps it back from the auditor.
    world.board.rows = [one for one in world.board.rows if one[0] is not matrix]
    world.auditor = make_auditor(world.cast, world.board, tmp_path / "auditor")

    assert_refused(world, attempt, "wrong_matrix")


def test_a_second_matrix_of_a_round_is_equivocation_and_nothing_is_opened(tmp_path: Path) -> None:
    world = make_sites(tmp_path)
    queried(world)
    for site in THREE:
        world.coordinator.score(0, site)
    to_opening(world)
    other = encode_matrix(ladder(), row_bound=ROW_BOUND)
    aside = MemoryBoard(world.cast.roster)
    first = world.coordinator.index
    world.coordinator.board, honest = aside, world.board
    world.coordinator.index = type(first)(PLAN, first.roster)
    second = world.coordinator.post(
        Kind.MATRIX, {"parameters_digest": other.parameters.digest}, payload=other.to_bytes()
    )
    honest.insert(second, other.to_bytes())

    with pytest.raises(PeerError) as caught:
        world.settle_auditor()

    assert caught.value.reason == "equivocation"
    assert recovered(world) == []


def test_other_scores_for_the_site_than_for_the_auditor_open_nothing(tmp_path: Path) -> None:
    """The board shows the victim the ladder, and the auditor what the matrix gives."""
    world = make_sites(tmp_path)
    board = TwoFacedBoard(world.cast.roster, world.board.rows)
    world.board = world.coordinator.board = board
    for party in (world.auditor, *world.sites.values()):
        me = party.participant if party is world.auditor else party.me
        me.client.board = board
    queried(world)
    shown = world.coordinator.score(0, VICTIM, payload=_silence(world, VICTIM))
    aside = world.coordinator.index
    world.coordinator.index = type(aside)(PLAN, aside.roster)
    for one in aside:
        if one is not shown:
            world.coordinator.index.add(one)
    board.rows, kept = [row for row in board.rows if row[0] is not shown], board.rows
    good = world.coordinator.score(0, VICTIM)
    board.rows = [*kept, board.rows[-1]]
    board.hidden = {
        (VICTIM, good.message_hash),
        ("auditor", shown.message_hash),
        ("coordinator", shown.message_hash),
    }
    for site in OTHERS:
        world.coordinator.score(0, site)

    attempt = to_opening(world)

    assert (
        np.abs(
            read_ladder(world.sites[VICTIM].vector(attempt))
            - world.sites[VICTIM].utilities[0][:READ]
        ).max()
        <= 0.03
    ), "the victim did pick by the ladder"
    fault = assert_refused(world, attempt, "wrong_basis")
    assert VICTIM in fault.message


def test_a_query_of_another_round_answers_nothing(tmp_path: Path) -> None:
    """Round 1, scored from what the sites asked in round 0, under the names of round 1."""
    world = make_sites(tmp_path)
    queried(world)
    world.run(
        until=lambda one: bool(
            one.coordinator.index.attempts(Kind.COHORT, round_id=1, purpose=STATISTICS)
        )
    )
    before = len(recovered(world))
    queried(world, round_id=1)
    for site in THREE:
        old = scores_of(world.coordinator.features, query_of(world, site, 0))
        world.coordinator.score(1, site, payload=old)

    attempt = to_opening(world, round_id=1)

    assert refusal(world, attempt).code == "wrong_scores"
    assert len(recovered(world)) == before


def test_scores_that_name_another_query_are_refused_by_the_site(tmp_path: Path) -> None:
    world = make_sites(tmp_path)
    queried(world)
    other = world.coordinator.index.find(Kind.QUERY, sender=OTHERS[0], to="coordinator")
    assert other is not None
    for site in THREE:
        changes = {"query": other.message_hash} if site == VICTIM else {}
        world.coordinator.score(0, site, **changes)

    with pytest.raises(PeerError) as caught:
        to_opening(world)

    assert caught.value.reason == "wrong_scores"
    assert recovered(world) == []


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
            patch.setattr("simulated_parties.basis_of", lambda *_a, **_k: invented)
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
