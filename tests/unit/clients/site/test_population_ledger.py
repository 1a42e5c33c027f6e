"""The population's ledger outlives studies, keys and, with two people's word, its own loss."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from protocol_world import index_of_zeros
from typer.testing import CliRunner

from lada_clients.auditor.commands import app as auditor_app
from lada_clients.ca.authority import issue_party
from lada_clients.site import decisions
from lada_clients.site.approval import DecisionRefused
from lada_clients.site.commands import app as site_app
from lada_clients.site.ledger.population import check_shown, is_new, renew_key, restart
from lada_clients.site.ledger.store import SqliteLedger, open_ledger_reader
from lada_protocol.identity.certificates import PartyName
from lada_protocol.kinds import Kind, Role
from lada_protocol.party_files import load_credentials
from lada_secure.errors import LedgerError, ParameterError
from lada_secure.privacy.accounting.events import GaussianEvent
from lada_secure.privacy.ledger.carried_budget import spending
from lada_secure.privacy.ledger.entries import LedgerEntry, format_ledger_lines
from lada_secure.privacy.ledger.terms import DISCRETE_GAUSSIAN, BudgetCaps, ReleaseSpec
from lada_secure.storage.state_folder import held_state_folder

PLAN = "a" * 64


def statistics_of(round_id: int) -> ReleaseSpec:
    """A round's statistics."""
    return ReleaseSpec(
        study_id="study",
        plan_hash=PLAN,
        round_id=round_id,
        purpose="statistics",
        mechanism=DISCRETE_GAUSSIAN,
        event=GaussianEvent(4.0),
        parameters={"l2_sensitivity": 20.0, "std": 80.0},
    )


class Parties:
    """Settings of hospital-a and the auditor over the session's study; state in `folder`."""

    def __init__(self, study: Any, folder: Path) -> None:
        self.study, self.folder = study, folder
        self.identity = study.folder / "hospital-a"
        (folder / "roster.json").write_bytes(study.roster.to_bytes())
        (folder / "policy.toml").write_text(
            f'roster_sha256 = "{study.roster.hash}"\npopulation = "patients"\n'
            "target_delta = 1e-5\nepsilon_cap_per_study = 8.0\nepsilon_cap_total = 9.0\n"
            "max_records_per_unit = 4\n"
        )
        common = 'coordinator = "localhost:1"\nroster = "roster.json"\nstate_dir = "state-{}"\n'
        self.site = folder / "site.toml"
        self.site.write_text(
            f'party = "hospital-a"\nidentity = "{self.identity}"\npolicy = "policy.toml"\n'
            f'records = "records.jsonl"\ncache_dir = "cache"\n{common.format("site")}'
            '[model]\nslm = "slm"\n'
        )
        self.auditor = folder / "auditor.toml"
        self.auditor.write_text(
            f'party = "auditor"\nidentity = "{study.folder / "auditor"}"\n'
            f'roster_sha256 = "{study.roster.hash}"\nexport_dir = "export"\nepsilon_cap = 8.0\n'
            f"{common.format('auditor')}"
        )
        (folder / "state-site").mkdir()
        self.ledger = folder / "state-site" / "ledger-patients.sqlite"

    @contextmanager
    def open(self) -> Iterator[SqliteLedger]:
        """The site's ledger, with the key of its present identity."""
        with SqliteLedger(
            self.ledger,
            site="hospital-a",
            population="patients",
            signing_key=load_credentials(self.identity).signing_key,
            caps=BudgetCaps(target_delta=1e-5, total_epsilon=9.0, study_epsilon=8.0),
            clock=lambda: datetime.now(UTC),
            time_step_s=3600,
        ) as ledger:
            yield ledger

    def spend(self, *rounds: int) -> tuple[LedgerEntry, ...]:
        """Pay for statistics of these rounds."""
        with self.open() as ledger:
            ledger.decide(
                "approve",
                study_id="study",
                plan_hash=PLAN,
                expires=datetime.now(UTC) + timedelta(days=1),
                decided_by="policy",
            )
            for round_id in rounds:
                spec = statistics_of(round_id)
                ledger.commit(ledger.reserve(spec), b"noised")
            return ledger.entries()

    def shown_to_auditor(self, entries: tuple[LedgerEntry, ...]) -> None:
        """Put the auditor's copy where the auditor keeps it."""
        path = self.folder / "state-auditor" / "ledgers" / "hospital-a" / "patients.jsonl"
        path.parent.mkdir(parents=True)
        path.write_bytes(format_ledger_lines(entries))

    def grant(self, out: str = "grant.json", **changes: str) -> Any:
        """`lada auditor grant-restart`."""
        options = {
            "--settings": str(self.auditor),
            "--site": "hospital-a",
            "--population": "patients",
            "--requested-by": "dr-meyer",
            "--by": "dr-weber",
            "--out": str(self.folder / out),
            **{f"--{name.replace('_', '-')}": value for name, value in changes.items()},
        }
        arguments = [word for pair in options.items() for word in pair]
        return CliRunner().invoke(auditor_app, ["grant-restart", *arguments])


@pytest.fixture
def parties(study: Any, tmp_path: Path) -> Parties:
    """A site and an auditor that were never online."""
    return Parties(study, tmp_path)


def _renewed_identity(parties: Parties) -> Path:
    """New keys for the site, in its settings; the folder with the old ones."""
    old, parties.identity = parties.identity, parties.folder / "identity-new"
    issue_party(
        parties.study.folder / "ca",
        party=PartyName(role=Role.SITE, id="hospital-a"),
        hosts=("localhost",),
        days=5,
        out=parties.identity,
        now=parties.study.now,
    )
    text = parties.site.read_text().replace(str(old), str(parties.identity))
    parties.site.write_text(text)
    return old


def test_a_renewed_key_goes_on_with_the_same_ledger_and_budget(parties: Parties) -> None:
    before = parties.spend(0)
    old = _renewed_identity(parties)
    with pytest.raises(LedgerError, match="lada site renew-key"), parties.open():
        pass
    done = CliRunner().invoke(
        site_app,
        [
            "renew-key", "--settings", str(parties.site), "--old-identity", str(old),
            "--by", "dr-meyer", "--json",
        ],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    key = load_credentials(parties.identity).signing_key.public_key().public_bytes_raw().hex()
    assert json.loads(done.output) == {"decided_by": "dr-meyer", "public_key": key}
    after = parties.spend(1)
    assert after[: len(before)] == before
    assert spending(after) == ((PLAN, GaussianEvent(4.0)),) * 2


def test_an_old_key_whose_certificates_are_gone_still_renews(
    parties: Parties, tmp_path: Path
) -> None:
    parties.spend(0)
    old = _renewed_identity(parties)
    bare = tmp_path / "old-key-alone"
    bare.mkdir()
    (bare / "sign.key").write_bytes((old / "sign.key").read_bytes())
    renew_key(parties.site, old_identity=bare, by="dr-meyer")
    parties.spend(1)


def test_somebody_else_s_key_continues_nothing(parties: Parties) -> None:
    before = parties.spend(0)
    _renewed_identity(parties)
    with pytest.raises(LedgerError, match="key in force"):
        renew_key(parties.site, old_identity=parties.study.folder / "bank", by="dr-meyer")
    with open_ledger_reader(parties.ledger) as ledger:
        assert ledger.entries() == before


def test_a_name_with_a_space_is_refused_with_the_option_s_name(parties: Parties) -> None:
    parties.spend(0)
    with pytest.raises(ParameterError, match="--by: expected 1 to 128 letters"):
        renew_key(parties.site, old_identity=parties.identity, by="Dr. Meyer")
    assert isinstance(parties.grant(by="Dr. Weber").exception, ParameterError)


def test_a_lost_ledger_is_restarted_by_two_people_with_what_it_had_cost(
    parties: Parties,
) -> None:
    entries = parties.spend(0, 1)
    parties.shown_to_auditor(entries)
    parties.ledger.unlink()

    granted = parties.grant()

    assert granted.exit_code == 0, granted.output
    assert (
        "dr-meyer of hospital-a asked for it and dr-weber of auditor granted it" in granted.output
    )
    arguments = ["restart-ledger", "--settings", str(parties.site)]
    arguments += ["--grant", str(parties.folder / "grant.json"), "--by", "dr-meyer"]
    done = CliRunner().invoke(site_app, arguments)
    assert done.exit_code == 0, done.output
    assert "IT WAS RESTARTED in place of the lost ledger" in done.output
    with parties.open() as ledger:
        assert not ledger.started_now
        assert not is_new(ledger.entries())
        carried = ledger.epsilon_spent(1e-5)
        assert [plan for plan, _ in spending(ledger.entries())] == [""]
    assert f"Epsilon {carried:.4f} at delta 1e-05 is carried over" in done.output
    assert carried > 1.0
    # Nobody restarts what is there.
    with pytest.raises(ParameterError, match="there is a ledger of population patients"):
        restart(parties.site, grant_file=parties.folder / "grant.json", by="dr-meyer")


def test_a_grant_is_for_one_site_population_and_person(parties: Parties) -> None:
    parties.shown_to_auditor(parties.spend(0))
    parties.ledger.unlink()
    assert parties.grant().exit_code == 0
    grant = parties.folder / "grant.json"
    with pytest.raises(ParameterError, match="another person at the site"):
        restart(parties.site, grant_file=grant, by="somebody-else")
    policy = parties.folder / "policy.toml"
    policy.write_text(policy.read_text().replace("patients", "customers"))
    with pytest.raises(ParameterError, match="another population"):
        restart(parties.site, grant_file=grant, by="dr-meyer")
    assert list((parties.folder / "state-site").glob("*.sqlite")) == []


def test_a_changed_grant_begins_nothing(parties: Parties) -> None:
    parties.shown_to_auditor(parties.spend(0))
    parties.ledger.unlink()
    parties.grant()
    path = parties.folder / "grant.json"
    path.write_bytes(path.read_bytes().replace(b'"count":1', b'"count":0'))
    changed = json.loads(path.read_bytes())
    changed["carried"], changed["studies"] = None, []
    path.write_bytes(json.dumps(changed, sort_keys=True, separators=(",", ":")).encode())
    with pytest.raises(LedgerError):
        restart(parties.site, grant_file=path, by="dr-meyer")
    assert not parties.ledger.exists()


def test_the_auditor_grants_only_what_it_has_seen(parties: Parties) -> None:
    refused = parties.grant()
    assert isinstance(refused.exception, ParameterError)
    assert "no copy of the ledger of hospital-a, population patients" in str(refused.exception)
    parties.shown_to_auditor(parties.spend(0))
    refused = parties.grant(site="nobody")
    assert "--site nobody: the roster has bank, hospital-a, hospital-b" in str(refused.exception)
    assert parties.grant().exit_code == 0
    assert "is there already" in str(parties.grant().exception)


def test_a_ledger_put_back_while_the_study_runs_is_noticed_before_anything_is_spent(
    parties: Parties, study: Any
) -> None:
    whole = parties.spend(0)
    index = index_of_zeros(study.roster)
    head = whole[-1]
    body = {"first_index": 0, "head_index": head.index, "head_hash": head.entry_hash}
    index.add(study.envelope(Kind.LEDGER, "hospital-a", b"", body=body))
    check_shown(whole, index, party="hospital-a")
    for entries in (whole[:-1], whole[:1]):
        with pytest.raises(LedgerError, match=r"an old copy was put back\. Nothing was spent"):
            check_shown(entries, index, party="hospital-a")
    check_shown(whole[:1], index, party="bank")


def test_a_site_can_leave_a_study_with_a_file_that_it_could_not_approve_with(
    parties: Parties, monkeypatch: pytest.MonkeyPatch
) -> None:
    (parties.folder / "records.jsonl").write_text("broken\n")

    def online(*_settings: object) -> None:
        raise LedgerError("online")

    monkeypatch.setattr(decisions, "_waiting_study", online)
    with pytest.raises(ParameterError, match=r"records\.jsonl:1: is not JSON"):
        decisions.approve(parties.site, "study", by="dr-meyer")
    with pytest.raises(LedgerError, match="online"):
        decisions.refuse(parties.site, "study", by="dr-meyer")
    with pytest.raises(DecisionRefused, match="nobody here has decided about it"):
        decisions.withdraw(parties.site, "study", by="dr-meyer")


@pytest.mark.parametrize("runs", [False, True])
def test_a_site_withdraws_without_a_coordinator_and_while_its_run_works(
    parties: Parties, monkeypatch: pytest.MonkeyPatch, runs: bool
) -> None:
    monkeypatch.setattr(decisions, "LOOK_FOR_S", 0.1)
    parties.spend(0)
    state = parties.ledger.parent
    with ExitStack() as running:
        if runs:
            running.enter_context(held_state_folder(state, party="hospital-a", role="site"))
        told = decisions.withdraw(parties.site, "study", by="A. Meyer, DPO", why="Not before May.")
    assert "A. Meyer, DPO withdrew from study study; nothing more leaves under it" in told
    said = "ends with its next step" if runs else r"The others were not told \(no plan waits at"
    assert re.search(said, told)
    with parties.open() as ledger:
        latest = ledger.latest_decision("study")
        assert latest is not None
        assert (latest.decision, latest.decided_by) == ("withdraw", "A. Meyer, DPO")
        assert "May" not in latest.statement
        with pytest.raises(LedgerError, match="latest decision on study study is 'withdraw'"):
            ledger.reserve(statistics_of(1))
    (reason,) = (state / "decisions" / "study").iterdir()
    assert json.loads(reason.read_text())["why"] == "Not before May."
    with pytest.raises(DecisionRefused, match="was withdrawn from by A"):
        decisions.withdraw(parties.site, "study", by="A. Meyer, DPO")
