"""`lada site studies` and `lada auditor studies`: what a party knows, without network."""

from __future__ import annotations

import json
import os
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import tomli_w
from finished_study import POPULATION, SITE, decide, take_part, write_site
from protocol_world import make_cast
from typer.testing import CliRunner, Result

from lada_clients.net.study_folder import study_folder
from lada_clients.site import decisions
from lada_clients.site.approval import DecisionRefused
from lada_clients.site.settings import read_site_settings
from lada_clients.site.studies import known_studies
from lada_protocol.plan import StudyPlan
from lada_protocol.studies import StudyOutcome
from lada_secure.cli import build_app
from lada_secure.errors import ParameterError
from lada_secure.method.mechanisms import planned_epsilon
from lada_secure.storage.state_folder import held_folder


def lada(*words: object) -> Result:
    return CliRunner().invoke(build_app(), [str(word) for word in words])


def ended(folder: Path, state: str, message: str = "") -> None:
    outcome = StudyOutcome(state=state, ended="2026-02-03T10:00:00Z", message=message)  # type: ignore[arg-type]
    (folder / "outcome.json").write_bytes(outcome.to_bytes())


def closed(folder: Path, rounds: int) -> None:
    """The messages by which the site has closed rounds."""
    (folder / "outbox").mkdir(exist_ok=True)
    for at in range(rounds):
        (folder / "outbox" / f"close-{at}-{'0' * 32}.message").write_bytes(b"")


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, StudyPlan]:
    """A site after one study."""
    root = tmp_path_factory.mktemp("site")
    settings = write_site(root)
    return settings, take_part(settings)


@pytest.fixture
def site(joined: tuple[Path, StudyPlan], tmp_path: Path) -> tuple[Path, StudyPlan, Path]:
    """A copy of it: settings file, plan, and the study's folder."""
    settings, plan = joined
    shutil.copytree(settings.parent, tmp_path / "site")
    copied = tmp_path / "site" / settings.name
    read, _ = read_site_settings(copied)
    return copied, plan, study_folder(read.state_dir, plan.study_id, plan.hash)


def test_a_finished_study_with_what_it_has_spent(site: tuple[Path, StudyPlan, Path]) -> None:
    settings, plan, folder = site
    closed(folder, 2)
    ended(folder, "finished")
    done = lada("site", "studies", "--settings", settings, "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["party"] == SITE
    (study,) = told["studies"]
    assert study["epsilon"] == pytest.approx(planned_epsilon(plan), rel=1e-3)
    assert study["begun"] is not None
    wanted = {
        "study_id": plan.study_id,
        "plan_hash": plan.hash,
        "state": "finished",
        "rounds_done": 2,
        "rounds": 2,
        "ended": "2026-02-03T10:00:00Z",
        "folder": str(folder),
        "message": "",
    }
    assert {name: study[name] for name in wanted} == wanted
    said = lada("site", "studies", "--settings", settings).stdout
    assert said.startswith(f"{plan.study_id} ({plan.hash[:12]}): finished, 2 of 2 rounds, epsilon ")


def test_a_study_that_runs_is_told_beside_its_process(site: tuple[Path, StudyPlan, Path]) -> None:
    settings, _, folder = site
    closed(folder, 1)
    with held_folder(folder):
        (study,) = known_studies(settings)[1]
    assert (study.state, study.rounds_done) == ("running", 1)
    (study,) = known_studies(settings)[1]
    assert study.state == "interrupted"
    # Of an earlier version, which kept no outcome.
    closed(folder, 2)
    (study,) = known_studies(settings)[1]
    assert study.state == "finished"


@pytest.mark.parametrize("state", ["failed", "refused", "withdrawn"])
def test_how_a_study_ended_and_why(site: tuple[Path, StudyPlan, Path], state: str) -> None:
    settings, _, folder = site
    ended(folder, state, "2 sites take part, 3 are needed")
    said = lada("site", "studies", "--settings", settings).stdout
    assert f": {state}, 0 of 2 rounds" in said
    assert said.endswith(". 2 sites take part, 3 are needed\n")


def test_a_decision_counts_before_a_process_has_noticed(
    site: tuple[Path, StudyPlan, Path],
) -> None:
    settings, plan, folder = site
    decide(read_site_settings(settings)[0], plan, "withdraw")
    with held_folder(folder):
        assert known_studies(settings)[1][0].state == "withdrawn"
    # What was finished by then was finished.
    ended(folder, "finished")
    assert known_studies(settings)[1][0].state == "finished"


def test_a_study_whose_folder_is_gone_still_stands_in_the_ledger(
    site: tuple[Path, StudyPlan, Path],
) -> None:
    settings, plan, folder = site
    shutil.rmtree(folder)
    (study,) = known_studies(settings)[1]
    assert (study.study_id, study.folder, study.rounds) == (plan.study_id, None, None)
    assert study.epsilon == pytest.approx(planned_epsilon(plan), rel=1e-3)


def test_a_site_that_was_in_no_study_says_so(tmp_path: Path) -> None:
    settings = write_site(tmp_path)
    assert lada("site", "studies", "--settings", settings).stdout == (
        "No study is known here yet.\n"
    )


def test_a_damaged_outcome_is_told_by_name(site: tuple[Path, StudyPlan, Path]) -> None:
    settings, _, folder = site
    (folder / "outcome.json").write_bytes(b"{")
    with pytest.raises(ParameterError, match=r"outcome\.json is damaged"):
        known_studies(settings)


def test_an_auditor_tells_epsilon_of_each_site_from_its_copies(
    site: tuple[Path, StudyPlan, Path], tmp_path: Path
) -> None:
    settings, plan, _ = site
    exported = tmp_path / "ledger.jsonl"
    assert lada("site", "ledger", "--settings", settings, "--out", exported).exit_code == 0
    root = tmp_path / "auditor"
    copy = root / "state" / "ledgers" / SITE / f"{POPULATION}.jsonl"
    copy.parent.mkdir(parents=True)
    shutil.copyfile(exported, copy)
    kept = study_folder(root / "state", plan.study_id, plan.hash)
    later = plan.model_copy(update={"study_id": "later"})
    second = study_folder(root / "state", "later", later.hash)
    for own, one, age_s in ((kept, plan, 60), (second, later, 0)):
        own.mkdir(parents=True)
        (own / "plan.json").write_bytes(one.to_bytes())
        at = (datetime.now(UTC) - timedelta(seconds=age_s)).timestamp()
        os.utime(own / "plan.json", (at, at))
    ended(kept, "finished")
    (root / "export").mkdir()
    (root / "export" / "plan.json").write_bytes(plan.to_bytes())
    table = {
        "party": "auditor",
        "coordinator": "127.0.0.1:1",
        "identity": "identity",
        "roster": "roster.json",
        "roster_sha256": make_cast().roster.hash,
        "state_dir": "state",
        "export_dir": "export",
        "epsilon_cap": 100.0,
    }
    (root / "auditor.toml").write_text(tomli_w.dumps(table))
    done = lada("auditor", "studies", "--settings", root / "auditor.toml", "--json")
    assert done.exit_code == 0, done.output
    first, last = json.loads(done.stdout)["studies"]
    spent = planned_epsilon(plan)
    assert first["by_site"] == pytest.approx({SITE: spent}, rel=1e-3)
    assert (first["state"], first["export"]) == ("finished", str(root / "export"))
    assert (last["study_id"], last["state"], last["epsilon"]) == ("later", "interrupted", 0.0)
    assert last["export"] is None


def test_a_study_that_is_over_here_is_approved_by_nobody(
    site: tuple[Path, StudyPlan, Path],
) -> None:
    settings, plan, folder = site
    place, _ = read_site_settings(settings)
    decisions._check_goes_on(place, plan)
    ended(folder, "failed", "2 sites take part, 3 are needed")
    with pytest.raises(DecisionRefused, match=r"is over here \(failed on 2026-02-03"):
        decisions._check_goes_on(place, plan)
