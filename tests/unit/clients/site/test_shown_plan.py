"""What a person reads before they decide, and what is noted of that."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from protocol_world import SLM, make_cast, make_plan
from site_doubles import POOL, record

from lada_clients.site.approval import DecisionRefused
from lada_clients.site.decision_notes import MAX_REASON, DecisionNotes, check_reason
from lada_clients.site.decisions import _check_read, _person
from lada_clients.site.gates.files import SiteFiles
from lada_clients.site.gates.policy import plan_statement
from lada_clients.site.settings import SitePolicy, SiteSettings, SlmSettings
from lada_clients.site.shown_plan import ShownPlan
from lada_secure.data.records import RecordFile, pool_hash
from lada_secure.errors import ParameterError
from lada_secure.method.mechanisms import planned_epsilon, planned_events
from lada_secure.privacy.accounting.accountant import epsilon
from lada_secure.privacy.accounting.events import GaussianEvent
from lada_secure.privacy.ledger.entries import DecisionEntry
from lada_secure.screen_text import printable

NOW = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
PLAN = make_plan(
    pool_size=len(POOL), pool_sha256=pool_hash(POOL), approve_by="2026-05-08T15:30:00Z"
)
CAST = make_cast()
POLICY = SitePolicy(
    roster_sha256=CAST.roster.hash,
    population="patients",
    target_delta=1e-5,
    epsilon_cap_per_study=8.0,
    epsilon_cap_total=20.0,
    max_records_per_unit=4,
    approval="person",
)
# 23 people: one of them with six records, of which four count.
RECORDS = (
    *(record(number) for number in range(23)),
    *(record(100 + extra, unit="u0") for extra in range(5)),
)
EARLIER = ("e" * 64, GaussianEvent(4.0))


def shown(**changes: object) -> ShownPlan:
    files = SiteFiles(
        records=RecordFile(name="r", records=RECORDS, lines=tuple(range(28)), faults=()),
        held_out=None,
    )
    usual = ShownPlan(
        site="site-a",
        plan=PLAN,
        roster=CAST.roster,
        policy=POLICY,
        files=files,
        model=SLM,
        pool=POOL,
        spent=(EARLIER,),
        promised=(),
        latest=None,
        faults=(),
        memory="It fits.",
        ledger=(),
        now=NOW,
    )
    return replace(usual, **changes)  # type: ignore[arg-type]


def decided(**changes: object) -> DecisionEntry:
    usual = DecisionEntry(
        index=1,
        previous_hash="0" * 64,
        site="site-a",
        population="patients",
        time="2026-05-03T08:00:00.000000Z",
        signature="",
        study_id=PLAN.study_id,
        plan_hash=PLAN.hash,
        decision="approve",
        expires="2030-01-31T12:00:00.000000Z",
        decided_by="A. Meyer, DPO",
        statement="",
    )
    return replace(usual, **changes)  # type: ignore[arg-type]


def test_it_says_who_reads_it_of_how_many_people_which_models_which_pool_and_what_is_left() -> None:
    told = " ".join(shown().sentences())
    after = epsilon([EARLIER[1], *planned_events(PLAN).values()], target_delta=1e-5)
    for part in (
        "It goes to coordinator (coordinator), auditor (auditor) and site-b, site-c (sites)",
        "It is about 30 people here, by 30 records, at most 4 of one person (rounded up to 10",
        SLM.weights_sha256[:12],
        f"The public pool has 6 questions, SHA-256 {PLAN.pool_sha256}, which is what the",
        f"Planned cost: epsilon {planned_epsilon(PLAN):.3f} of the cap",
        f"with the whole of this study it would be {after:.3f}",
        f"Left for later studies of patients would be epsilon {20 - after:.3f} of 20",
        "The policy allows it.",
        f"The plan's SHA-256 is {PLAN.hash}.",
        "time is until 2026-05-08T15:30:00Z (4 d 3 h left): `lada site approve study-1",
    ):
        assert part in told, part


def test_counts_are_rounded_as_the_policy_says() -> None:
    exact = shown(policy=POLICY.model_copy(update={"counts_rounded_up_to": 1}))
    assert (exact.people, exact.records) == (23, 26)
    assert "23 people here, by 26 records, at most 4 of one person (counted exactly" in " ".join(
        exact.sentences()
    )
    coarse = shown(policy=POLICY.model_copy(update={"counts_rounded_up_to": 100}))
    assert (coarse.people, coarse.records) == (100, 100)


def test_programs_get_the_same_with_whole_hashes() -> None:
    facts = json.loads(json.dumps(shown().to_json()))
    assert facts["slm"]["tokenizer_sha256"] == SLM.tokenizer_sha256
    assert (facts["people"], facts["standing"], facts["decided_by"]) == (30, "undecided", None)
    assert facts["budget"]["epsilon_left"] == pytest.approx(20.0 - facts["budget"]["epsilon_after"])
    assert facts["readers"]["sites"] == ["site-b", "site-c"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"latest": decided()}, "It is approved by A. Meyer, DPO on 2026-05-03."),
        ({"latest": decided(plan_hash="c" * 64)}, "It is another plan than cccccccccccc..."),
        ({"policy": POLICY.model_copy(update={"approval": "policy"})}, "policy decides by itself"),
        ({"pool": ()}, "not posted yet"),
        ({"pool": POOL[:2]}, "NOT what the coordinator has posted"),
        ({"faults": ("it expired",)}, "The policy forbids it: it expired."),
        ({"now": datetime(2026, 5, 9, tzinfo=UTC)}, "(none left)"),
        ({"plan": make_plan()}, "`lada site run` waits 60 s for a person"),
    ],
)
def test_it_says_how_things_stand(changes: dict[str, object], words: str) -> None:
    assert words in " ".join(shown(**changes).sentences())


def test_a_title_cannot_command_a_terminal_or_turn_a_line() -> None:
    plan = make_plan(title="Hearts\x1b[2J\u202eevil\u2028")
    for text in (" ".join(shown(plan=plan).sentences()), plan_statement(plan)):
        assert "\x1b" not in text
        assert "\u202e" not in text
        assert "Hearts\ufffd[2J\ufffdevil\ufffd" in text
    assert printable("Zoë, 김, naïve – yes") == "Zoë, 김, naïve – yes"


def settings(folder: Path) -> SiteSettings:
    return SiteSettings(
        party="site-a",
        coordinator="localhost:1",
        identity=folder / "identity",
        roster=folder,
        policy=folder,
        state_dir=folder,
        records=folder,
        cache_dir=folder,
        model=SlmSettings(slm="slm"),
    )


def test_nobody_approves_a_plan_that_they_have_not_read(tmp_path: Path) -> None:
    own, notes = settings(tmp_path), DecisionNotes(state_dir=tmp_path)
    with pytest.raises(ParameterError, match=rf"nobody has read .* --plan {PLAN.hash[:12]}"):
        _check_read(own, PLAN, None)
    before = make_plan(rounds=1)
    notes.note_shown(before, at=NOW)
    with pytest.raises(DecisionRefused, match=rf"not {before.hash[:12]}\.\.\.: the coordinator"):
        _check_read(own, PLAN, None)
    # Another study's plan says nothing about this one.
    assert DecisionNotes(state_dir=tmp_path).other_shown(make_plan(study_id="other")) == ""
    notes.note_shown(PLAN, at=NOW)
    _check_read(own, PLAN, None)


def test_a_plan_that_was_read_elsewhere_is_named_by_its_hash(tmp_path: Path) -> None:
    own = settings(tmp_path)
    for named in (PLAN.hash, PLAN.hash[:8]):
        _check_read(own, PLAN, named)
    with pytest.raises(DecisionRefused, match="the coordinator has changed it"):
        _check_read(own, PLAN, make_plan().hash)
    for named in ("", PLAN.hash[:7], "not a hash", PLAN.hash.upper()):
        with pytest.raises(ParameterError, match="--plan: expected the first 8 or more"):
            _check_read(own, PLAN, named)


def test_a_reason_is_kept_for_the_site_s_owner_alone(tmp_path: Path) -> None:
    notes = DecisionNotes(state_dir=tmp_path)
    why = check_reason("  Not before May.\nThe board <meets> then.  ")
    notes.note_reason("study-1", PLAN.hash, "refuse", by="A. Meyer", why=why, at=NOW)
    (path,) = (tmp_path / "decisions" / "study-1").iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    assert json.loads(path.read_text()) == {
        "at": "2026-05-04T12:00:00Z",
        "by": "A. Meyer",
        "why": "Not before May.\nThe board <meets> then.",
    }


@pytest.mark.parametrize("why", ["x" * (MAX_REASON + 1), "red \x1b[31m", "turned \u202e", "\x00"])
def test_a_reason_is_text(why: str) -> None:
    with pytest.raises(ParameterError, match=r"^--why: "):
        check_reason(why)


def test_a_person_is_not_called_as_policies_sign() -> None:
    assert _person("  A. Meyer, DPO ") == "A. Meyer, DPO"
    assert _person("Zoe\u0308") == "Zo\u00eb"
    with pytest.raises(ParameterError, match="that is how policies sign"):
        _person("policy-of-site-a")
