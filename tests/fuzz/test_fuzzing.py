"""Mutated messages against coordinator, auditor and site; see docs/fuzzing.md.

What must hold for every input stands in `fuzz_targets`. The quick tests replay the corpus and try
some thousand mutations; the slow ones try 105,000: 90,000 by the coverage-guided fuzzer, 15,000 by
hypothesis.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fuzz_edits import CRASHERS, EDITS, Dice, Draft, bind_ledger, edit_json
from fuzz_loopback import RealBoard
from fuzz_memory import EVERY_INPUTS, WARM_UP_INPUTS, Growth
from fuzz_parties import TARGETS
from fuzz_study import RecordedStudy, record
from fuzz_targets import FindingError, Target, stages_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lada_protocol.kinds import Kind
from lada_protocol.wire import lada_pb2

PARTIES = sorted(TARGETS)
SCRIPTS = Path(__file__).parent / "corpus" / "scripts"
QUICK_MUTATIONS = 200
# 105,000 in all; a site's input costs a fifth of a coordinator's, which goes through a database.
GUIDED_MUTATIONS = {"coordinator": 20_000, "auditor": 25_000, "site": 45_000}
HYPOTHESIS_MUTATIONS = 5_000
# On two cores that nobody else uses; on a busy machine three times as long.
SLOW_TIMEOUT_S = 7_200
CRASHER = [edit.__name__ for edit in EDITS].index("_crasher")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> RecordedStudy:
    """One recorded study for all parties."""
    return record(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def targets(
    study: RecordedStudy, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Target]]:
    """The three parties."""
    # Thousands of refusals are logged as they should be; nobody reads them here.
    logging.disable(logging.CRITICAL)
    yield {party: make(study, tmp_path_factory.mktemp(party)) for party, make in TARGETS.items()}
    logging.disable(logging.NOTSET)


def test_the_recorded_study_holds_every_message_of_a_round_without_faults(
    study: RecordedStudy,
) -> None:
    recorded = {one.kind for _, one, _ in study.recording.rows}
    faults = {Kind.REFUSAL, Kind.OPENING_REFUSED, Kind.ABORT, Kind.FAILED}
    # The study is recorded up to the end of its first round; `finished` ends the last one.
    assert set(Kind) - recorded <= faults | {Kind.FINISHED, Kind.RECEIPT}


@pytest.mark.parametrize("party", PARTIES)
def test_unchanged_messages_are_taken_and_worked_on(targets: dict[str, Target], party: str) -> None:
    target = targets[party]
    for number in range(0, len(target.stages), 9):
        outcome = target.replay(number, b"")
        assert not outcome.startswith(("refused", "stopped")), (target.stages[number], outcome)


@pytest.mark.parametrize("party", PARTIES)
def test_known_crashers_in_every_payload_end_in_an_error_code(
    targets: dict[str, Target], party: str
) -> None:
    target = targets[party]
    last = {stage.envelope.kind: n for n, stage in enumerate(target.stages) if stage.payload}
    assert len(last) >= 5
    for number in last.values():
        for crasher in range(len(CRASHERS)):
            target.replay(number, bytes((1, CRASHER, crasher)))


@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("*.hex")), ids=lambda one: one.stem)
def test_inputs_that_once_showed_a_defect_pass(targets: dict[str, Target], script: Path) -> None:
    party, kind, _ = script.stem.split(".", 2)
    target = targets[party]
    numbers = [n for n, one in enumerate(target.stages) if one.envelope.kind.value == kind]
    assert numbers
    for number in numbers[:12]:
        target.replay(number, bytes.fromhex(script.read_text(encoding="ascii")))


def test_a_list_from_any_64_bit_number_on_is_answered(study: RecordedStudy, tmp_path: Path) -> None:
    store = study.recording.open_store(tmp_path)
    pem = study.recording.credentials["site-a"].tls_certificate_pem
    stub = RealBoard(study.recording.serve(store, tmp_path / "uploads"), pem)
    for number in (0, 2**31, 2**63 - 1, 2**63, 2**64 - 1):
        assert not stub.List(lada_pb2.ListRequest(after_sequence=number)).entries
    store.close()


@pytest.mark.slow
@pytest.mark.parametrize("party", PARTIES)
def test_some_hundred_mutations_break_no_property(targets: dict[str, Target], party: str) -> None:
    rng, target = random.Random(11), targets[party]
    before = set(target.outcomes)
    for _ in range(QUICK_MUTATIONS):
        target.run(rng.randbytes(rng.choice((4, 8, 16, 40))))
    # The mutations get behind the signatures: refusals of many kinds, and messages that pass.
    assert len(set(target.outcomes) | before) >= 8, target.outcomes


@pytest.mark.parametrize("party", PARTIES)
def test_hypothesis_finds_no_input_that_breaks_a_property(
    targets: dict[str, Target], party: str
) -> None:
    # The same inputs on every run; the slow tests look for new ones.
    @settings(
        deadline=None,
        max_examples=60,
        suppress_health_check=list(HealthCheck),
        derandomize=True,
        database=None,
    )
    @given(st.binary(max_size=40))
    def try_one(data: bytes) -> None:
        targets[party].run(data)

    try_one()


def test_a_property_that_does_not_hold_is_reported_with_its_input(
    targets: dict[str, Target], monkeypatch: pytest.MonkeyPatch
) -> None:
    target = targets["site"]

    def broken(*_: object) -> str:
        raise KeyError("not ours")

    monkeypatch.setattr(target, "deliver", broken)
    with pytest.raises(FindingError, match=r"KeyError.*input 0000"):
        target.run(bytes(2))
    monkeypatch.setattr(target, "deliver", lambda *_: sys.exit(3))
    with pytest.raises(FindingError, match="left the process"):
        target.run(b"")


def test_edits_change_what_they_should_and_a_rebound_ledger_is_whole(
    study: RecordedStudy,
) -> None:
    from lada_secure.privacy.ledger.entries import parse_ledger_lines
    from lada_secure.privacy.ledger.verification import verify_ledger

    assert edit_json({"a": 1}, Dice(bytes((0, 0)))) == {}
    assert edit_json([1, 2], Dice(bytes((0, 1)))) == [1, 1, 2]
    recording = study.recording
    _, envelope, payload = next(row for row in recording.rows if row[1].kind is Kind.LEDGER)
    key = recording.credentials[envelope.header.sender].signing_key
    draft = Draft.of(envelope, payload.replace(b"patients", b"patientz"))
    bind_ledger(draft, key)
    entries = parse_ledger_lines(draft.payload)
    assert (
        entries[-1].entry_hash
        == draft.header["body"]["head_hash"]
        != (envelope.header.body["head_hash"])
    )
    honest = parse_ledger_lines(payload)
    verify_ledger(honest, public_key=key.public_key().public_bytes_raw(), caps=None)
    # Ed25519 is deterministic: what was not changed is signed as its owner signed it.
    same = Draft.of(envelope, payload)
    bind_ledger(same, key)
    assert same.payload == payload


def test_every_moment_of_a_message_lies_before_the_transcript_that_lists_it(
    study: RecordedStudy,
) -> None:
    rows = study.recording.rows
    transcript = next(number for number, one, _ in rows if one.kind is Kind.TRANSCRIPT)
    for reader in ("coordinator", "auditor", "site-a"):
        stages = stages_of(study.recording, reader)
        assert stages
        for stage in stages:
            assert stage.until > stage.sequence
            assert stage.sequence >= transcript or stage.until <= transcript


def test_an_acceptance_is_not_changed_behind_the_admission_that_names_it(
    study: RecordedStudy,
) -> None:
    rows = study.recording.rows
    admitted = {one.header.to: number for number, one, _ in rows if one.kind is Kind.ADMISSION}
    assert len(admitted) == 3
    for stage in stages_of(study.recording, "coordinator"):
        if stage.envelope.kind is Kind.ACCEPTANCE:
            assert stage.until <= admitted[stage.envelope.header.sender]


@pytest.mark.parametrize(
    ("beside_fuzzer", "left"),
    [
        (True, lambda: [object() for _ in range(3_000)]),
        # Far more than earlier tests of this process may have given back to its allocator.
        (False, lambda: b"x" * 1_000_000),
    ],
)
def test_what_every_input_leaves_behind_is_noticed(
    beside_fuzzer: bool, left: Callable[[], object]
) -> None:
    growth, kept = Growth(beside_fuzzer=beside_fuzzer), []
    for _ in range(WARM_UP_INPUTS):
        growth.check()
    for _ in range(EVERY_INPUTS - 1):
        kept.append(left())
        growth.check()
    with pytest.raises(AssertionError, match=f"over {EVERY_INPUTS} inputs"):
        growth.check()


@pytest.mark.slow
@pytest.mark.timeout(SLOW_TIMEOUT_S)
@pytest.mark.parametrize("party", PARTIES)
def test_thousands_of_hypothesis_mutations_break_no_property(
    targets: dict[str, Target], party: str
) -> None:
    """5,000 a party, about a minute each."""
    growth = Growth()

    @settings(
        deadline=None,
        max_examples=HYPOTHESIS_MUTATIONS,
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(st.binary(max_size=64))
    def try_one(data: bytes) -> None:
        targets[party].run(data)
        growth.check()

    try_one()
    assert targets[party].outcomes.total() >= HYPOTHESIS_MUTATIONS


@pytest.mark.slow
@pytest.mark.timeout(SLOW_TIMEOUT_S)
@pytest.mark.parametrize("party", PARTIES)
def test_the_coverage_guided_fuzzer_breaks_no_property(tmp_path: Path, party: str) -> None:
    """90,000 in all, about ten minutes a party; no input above 60 s, memory below 3 GB."""
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris is not installed; it is part of the extra `fuzz`")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for script in SCRIPTS.glob("*.hex"):
        raw = bytes.fromhex(script.read_text(encoding="ascii"))
        (corpus / script.stem).write_bytes(bytes(2) + raw)
    here = Path(__file__).parent
    done = subprocess.run(
        [
            sys.executable,
            str(here / "guided.py"),
            party,
            str(tmp_path),
            f"-atheris_runs={GUIDED_MUTATIONS[party]}",
            "-max_len=64",
            "-len_control=0",
            "-timeout=60",
            "-rss_limit_mb=3000",
            "-seed=1",
            f"-artifact_prefix={tmp_path}/",
            str(corpus),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=SLOW_TIMEOUT_S,
        check=False,
    )
    said = done.stdout + done.stderr
    # Findings, and inputs that take too long, end in other ways. After its last input the fuzzer
    # gives up its handler for the alarm that it set, which may still ring on a busy machine.
    ended = done.returncode in (0, -signal.SIGALRM)
    # Python's own exception stands on the one, what the fuzzer says of it on the other.
    assert ended, done.stdout[-2000:] + done.stderr[-2000:]
    # libFuzzer itself says "Done N runs in", atheris that counts its own says "Done N in".
    count = re.search(r"Done (\d+) (?:runs )?in ", said)
    assert count is not None, said[-2000:]
    assert int(count[1]) >= GUIDED_MUTATIONS[party]
    shutil.rmtree(corpus)
