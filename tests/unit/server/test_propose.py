"""`lada server propose`: a dry run of every value, a proposal, and one that is taken back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checked_run import change_toml, llm_folder, slm_folder, tree
from typer.testing import CliRunner

from lada_lab.mock.layout import RunLayout
from lada_protocol.kinds import Kind
from lada_protocol.party_files import load_credentials, read_roster, read_settings
from lada_protocol.plan import StudyPlan, parse_plan
from lada_protocol.rounds.index import MessageIndex, Slot
from lada_protocol.rounds.withdrawal import WITHDRAWN, may_have_spent
from lada_protocol.wire.envelope import Envelope
from lada_protocol.wire.messages import FaultBody, parse_body
from lada_secure.errors import ParameterError
from lada_secure.method.plan import STATISTICS
from lada_secure.storage.state_folder import held_folder
from lada_server.board.store import BoardStore
from lada_server.check.outlook import Proposal
from lada_server.check.places import port_findings
from lada_server.commands import app
from lada_server.runner import propose
from lada_server.settings import ServerSettings
from lada_server.study.places import keep_outcome

Spoil = Callable[[RunLayout], None]


def change_study(**changes: Any) -> Spoil:
    return lambda layout: change_toml(layout.coordinator.root / "study.toml", **changes)


def dry_run(layout: RunLayout, *options: str) -> tuple[int, dict[str, Any]]:
    """Exit status and JSON."""
    words = ["propose", "--settings", str(layout.coordinator.settings), "--dry-run", "--json"]
    ended = CliRunner().invoke(app, [*words, *options])
    assert ended.exception is None or isinstance(ended.exception, SystemExit), ended.exception
    return ended.exit_code, json.loads(ended.stdout)


def told(found: dict[str, Any], check: str) -> str:
    return "\n".join(one["message"] for one in found["findings"] if one["check"] == check)


def test_a_study_as_it_should_be_is_told_with_all_that_it_asks_and_nothing_is_loaded(
    checked_run: RunLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*_arguments: object, **_options: object) -> None:
        raise AssertionError("something was loaded")

    monkeypatch.setattr("lada_server.study.local_llm.load_language_model", loaded)
    monkeypatch.setattr("lada_server.study.proposal.embedder", loaded)
    before = tree(checked_run.root.parent)
    status, found = dry_run(checked_run)
    assert (status, found["level"], found["format"]) == (0, "ok", "lada-proposal/1"), found
    outlook, asked = found["outlook"], found["asked"]
    privacy = outlook["privacy"]
    assert set(privacy["alone"]) == {"statistics", "training"}
    assert 0 < max(privacy["alone"].values()) < privacy["epsilon"] <= privacy["epsilon_cap"]
    assert outlook["steps"]["private"] == (
        outlook["steps"]["rounds"] * outlook["steps"]["private_per_round"]
    )
    assert outlook["time"]["computing_s"] is None
    assert outlook["traffic"]["up_bytes"] > 0
    assert (asked["pool_size"], outlook["sites"]) == (192, 3)
    assert len(asked["pool_sha256"]) == len(asked["roster_sha256"]) == 64
    identity = next(one for one in found["findings"] if one["check"] == "model.identity")
    assert len(identity["facts"]["weights_sha256"]) == 64
    assert "free" in told(found, "model.memory")
    assert tree(checked_run.root.parent) == before


def test_the_schema_is_that_of_the_page() -> None:
    page = Path(__file__).parents[3] / "docs" / "proposal.schema.json"
    assert json.loads(page.read_text()) == Proposal.model_json_schema()


def test_people_read_the_same_in_lines(checked_run: RunLayout) -> None:
    words = ["propose", "--settings", str(checked_run.coordinator.settings), "--dry-run"]
    words += ["--slm", str(slm_folder(checked_run))]
    ended = CliRunner().invoke(app, words)
    assert ended.exit_code == 0, ended.output
    for text in ("privacy  epsilon", "work     ", "traffic  ", "time     ", "pool     192 samples"):
        assert text in ended.output
    assert "a site with" in ended.output


MISTAKES: dict[str, tuple[Spoil, tuple[str, ...]]] = {
    "several at once": (
        change_study(
            allocation={"strategy": "ladaa"},
            distillation={"contrastive_form": "foo"},
            statistics={"integer_scale": 1},
            privacy={"epsilon_cap": 0.01},
        ),
        # Unknown names are answered by the known ones.
        ("'ladaa'", "guided", "contrastive_form", "dpo", "statistics", "above its own cap"),
    ),
    "an unknown embedder": (change_study(embedder="word2vec"), ("'minilm'", "word2vec")),
    "fields that each may be": (
        change_study(allocation={"screen_low": 0.9, "screen_high": 0.1}),
        ("screen_low is above screen_high",),
    ),
    "more sites than there are": (change_study(min_cohort=4), ("the roster has 3 sites",)),
    "more than the pool has": (change_study(paths={"budget": 10**6}), ("paths.budget is 1000000",)),
}


@pytest.mark.parametrize(("spoil", "said"), MISTAKES.values(), ids=MISTAKES)
def test_every_value_that_anybody_would_refuse_is_a_fault_here(
    checked_run: RunLayout, spoil: Spoil, said: tuple[str, ...]
) -> None:
    spoil(checked_run)
    status, found = dry_run(checked_run)
    assert (status, found["level"]) == (2, "fault")
    assert (found["asked"], found["outlook"]) == (None, None)
    plan = told(found, "plan")
    assert all(text in plan for text in said), plan


def test_a_delta_that_protects_nobody_is_a_warning(checked_run: RunLayout) -> None:
    change_study(privacy={"max_units": 1_000_000})(checked_run)
    status, found = dry_run(checked_run)
    if found["level"] != "fault":
        assert (status, found["level"]) == (1, "warning")
        assert "not far below 1/units" in told(found, "plan")


def coordinator_of(layout: RunLayout) -> ServerSettings:
    return read_settings(layout.coordinator.settings, ServerSettings)


def kept_plan(layout: RunLayout) -> StudyPlan:
    return parse_plan((coordinator_of(layout).state_dir / "plan.json").read_bytes())


def posted(layout: RunLayout, *more: Envelope) -> list[Envelope]:
    """All messages of the board, after these have been put there."""
    settings = coordinator_of(layout)
    store = BoardStore(
        settings.database_url,
        payload_dir=settings.state_dir / "payloads",
        roster=read_roster(settings.roster),
    )
    try:
        for one in more:
            store.post(one, b"")
        return [one for _, one in store.visible("coordinator", 0)]
    finally:
        store.close()


def by_party(layout: RunLayout, party: str, kind: Kind, body: dict[str, Any]) -> Envelope:
    """A message of a party in the first attempt at the first sum."""
    folder = layout.coordinator if party == "coordinator" else layout.site(party)
    index = MessageIndex(kept_plan(layout), read_roster(coordinator_of(layout).roster))
    key = load_credentials(folder.identity).signing_key
    return index.sign(Slot(kind, 0, STATISTICS, 0, party, ""), body, b"", key)


def test_a_proposal_waits_on_the_board_and_is_made_once(checked_run: RunLayout) -> None:
    settings = checked_run.coordinator.settings
    _, plan = propose(settings, new=False)
    assert kept_plan(checked_run) == plan
    kinds = [one.kind for one in posted(checked_run)]
    assert kinds == [Kind.PLAN, Kind.POOL, Kind.CLUSTERS]
    assert propose(settings, new=False) == (None, plan)
    assert len(posted(checked_run)) == 3
    status, found = dry_run(checked_run)
    assert status == 0
    assert "proposed already" in told(found, "plan.kept")


def test_nothing_is_kept_or_posted_before_the_llm_was_loaded(checked_run: RunLayout) -> None:
    weights = llm_folder(checked_run) / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ParameterError):
        propose(checked_run.coordinator.settings, new=False)
    assert not (coordinator_of(checked_run).state_dir / "plan.json").exists()
    assert posted(checked_run) == []


def test_a_changed_study_takes_the_old_proposal_back_under_a_name_of_its_own(
    checked_run: RunLayout,
) -> None:
    settings, state = checked_run.coordinator.settings, coordinator_of(checked_run).state_dir
    with pytest.raises(ParameterError, match="nothing was proposed"):
        propose(settings, new=True)
    _, old = propose(settings, new=False)
    change_study(rounds=old.rounds + 1)(checked_run)
    status, found = dry_run(checked_run)
    assert status == 1
    assert f"rounds: proposed was {old.rounds}" in told(found, "plan.kept")
    with pytest.raises(ParameterError, match="lada server propose --new"):
        propose(settings, new=False)
    with pytest.raises(ParameterError, match=f'set study_id = "{old.study_id}-2"'):
        propose(settings, new=True)
    assert len(posted(checked_run)) == 3

    change_study(study_id=f"{old.study_id}-2")(checked_run)
    # A new study that does not pass its checks takes nothing back.
    change_study(allocation={"strategy": "ladaa"})(checked_run)
    with pytest.raises(ParameterError, match="ladaa"):
        propose(settings, new=True)
    assert kept_plan(checked_run) == old
    change_study(allocation={"strategy": old.allocation.strategy})(checked_run)

    withdrawn, new = propose(settings, new=True)
    assert withdrawn == old
    assert (new.study_id, new.rounds) == (f"{old.study_id}-2", old.rounds + 1)
    assert kept_plan(checked_run) == new
    archived = state / "withdrawn" / f"{old.study_id}-{old.hash[:16]}.json"
    assert parse_plan(archived.read_bytes()) == old
    rows = posted(checked_run)
    assert [(one.kind, one.header.study_id) for one in rows[3:]] == [
        (Kind.FAILED, old.study_id),
        *((kind, new.study_id) for kind in (Kind.PLAN, Kind.POOL, Kind.CLUSTERS)),
    ]
    assert parse_body(rows[3], FaultBody).code == WITHDRAWN


def test_nothing_is_taken_back_once_a_site_may_have_spent(checked_run: RunLayout) -> None:
    settings = checked_run.coordinator.settings
    _, old = propose(settings, new=False)
    sites = [party.id for party in read_roster(coordinator_of(checked_run).roster).sites]
    named = by_party(checked_run, "coordinator", Kind.COHORT, {"sites": sites})
    keys = [
        by_party(checked_run, site, Kind.MASK_KEY, {"public_key": f"{number:064x}"})
        for number, site in enumerate(sites, start=9)
    ]
    posted(checked_run, named, *keys[:-1])
    index = MessageIndex(old, read_roster(coordinator_of(checked_run).roster))
    for one in (named, *keys[:-1]):
        index.add(one)
    # One key is missing: no site has gone on, so none has paid.
    assert may_have_spent(index) == ()
    index.add(keys[-1])
    assert may_have_spent(index) == tuple(sites)

    change_study(study_id="another", rounds=old.rounds + 1)(checked_run)
    posted(checked_run, keys[-1])
    before = tree(coordinator_of(checked_run).state_dir)
    with pytest.raises(ParameterError, match=r"site-a, site-b, site-c may have spent"):
        propose(settings, new=True)
    assert kept_plan(checked_run) == old
    left = {name for name in tree(coordinator_of(checked_run).state_dir) if "plan" in name}
    assert left == {name for name in before if "plan" in name}
    assert not [one for one in posted(checked_run) if one.kind is Kind.FAILED]


def test_a_dry_run_takes_nothing_back(checked_run: RunLayout) -> None:
    words = ["propose", "--settings", str(checked_run.coordinator.settings), "--dry-run", "--new"]
    assert isinstance(CliRunner().invoke(app, words).exception, ParameterError)


def test_a_models_memory_is_asked_with_a_dry_run_alone(checked_run: RunLayout) -> None:
    words = ["propose", "--settings", str(checked_run.coordinator.settings), "--slm", "x"]
    ended = CliRunner().invoke(app, words)
    assert isinstance(ended.exception, ParameterError)
    assert "--slm: only with --dry-run" in str(ended.exception)


def test_the_next_study_is_tried_beside_what_is_over(checked_run: RunLayout) -> None:
    state = checked_run.coordinator.state
    propose(checked_run.coordinator.settings, new=False)
    change_study(study_id="second")(checked_run)
    status, found = dry_run(checked_run)
    assert status == 1, found
    assert "is not over" in json.dumps(found)
    keep_outcome(state, "finished")
    status, found = dry_run(checked_run)
    assert status == 0, found
    # A later study that runs has the ports, in a folder of its own.
    place = state / "studies" / "second"
    place.mkdir(parents=True)
    (place / "plan.json").write_bytes(
        parse_plan((state / "plan.json").read_bytes())
        .model_copy(update={"study_id": "second"})
        .to_bytes()
    )
    settings = read_settings(checked_run.coordinator.settings, ServerSettings)
    with held_folder(place):
        (running,) = port_findings(settings)
    assert "the coordinator runs" in running.message
