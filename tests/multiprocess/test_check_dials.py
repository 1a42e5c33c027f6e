"""`lada check` dials a served board as a run would, and tells whose it is."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import tomli_w
from protocol_world import make_plan, signed
from served_board import serving

from lada_clients.auditor.check import AuditorChecks
from lada_clients.net.reaching import coordinator_found
from lada_protocol.kinds import Kind
from lada_protocol.wire.transport_settings import TransportSettings
from lada_secure.check.running import Request, run_checks
from lada_secure.errors import TransportError


@dataclass(frozen=True)
class Dialling:
    """What of a party's settings the check reads."""

    coordinator: str
    identity: Path
    party: str = "bank"
    passphrase: None = None
    transport: TransportSettings = field(default_factory=TransportSettings)


def test_a_coordinator_that_answers_is_known_by_its_key_and_hears_nothing(study, tmp_path):
    with serving(study, tmp_path) as served:
        settings = Dialling(served.server.address, study.identity("bank"))
        (found,) = coordinator_found(settings, study.roster)
        assert (found.level, found.facts["address"]) == ("ok", served.server.address)
        assert "coordinator at " in found.message
        assert served.store.visible("coordinator", 0) == []


def test_a_coordinator_of_another_study_is_told(study, make_study, tmp_path):
    other = make_study()
    with serving(other, tmp_path) as served:
        settings = Dialling(served.server.address, study.identity("bank"))
        with pytest.raises(TransportError, match="this study's CA does not vouch for"):
            list(coordinator_found(settings, study.roster))


def test_nobody_there_is_no_fault_before_a_study(study, tmp_path):
    with serving(study, tmp_path) as served:
        address = served.server.address
    (found,) = coordinator_found(Dialling(address, study.identity("bank")), study.roster)
    assert found.level == "skipped"
    assert f"nobody listens at {address} yet" in found.message


def test_a_plan_that_is_proposed_is_compared_before_anybody_joins(study, tmp_path):
    plan = make_plan()
    settings = {
        "party": "auditor",
        "identity": str(study.identity("auditor")),
        "roster": str(study.folder / "roster.json"),
        "roster_sha256": study.roster.hash,
        "state_dir": str(tmp_path / "state"),
        "export_dir": str(tmp_path / "export"),
        "epsilon_cap": plan.privacy.epsilon_cap / 2,
    }
    file = tmp_path / "auditor.toml"

    def found(served):
        file.write_text(tomli_w.dumps(settings | {"coordinator": served.server.address}))
        checks = AuditorChecks(file, Request()).entries()
        return {one.check: (one.level, one.message) for one in run_checks(checks, quick=True)}

    with serving(study, tmp_path) as served:
        assert found(served)["plan.policy"] == (
            "skipped",
            "no --plan is named, and none is proposed",
        )
        raw, key = plan.to_bytes(), study.credentials("coordinator").signing_key
        body = {"certificate": "nobody reads it here"}
        message = signed(study.roster, key, plan, Kind.PLAN, "coordinator", body, raw)
        served.store.post(message, raw)
        level, said = found(served)["plan.policy"]
        assert (level, "This auditor would refuse the plan" in said) == ("fault", True)
        assert [one.kind for _, one in served.store.visible("coordinator", 0)] == [Kind.PLAN]
    assert not (tmp_path / "state").exists()
