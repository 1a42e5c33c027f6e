"""`lada check` dials a served board as a run would, and tells whose it is."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import tomli_w
from protocol_world import make_plan, signed
from served_board import serving

from lada_clients.auditor.check import AuditorChecks
from lada_clients.net.reaching import coordinator_found
from lada_clients.site.check.reading import SiteReading
from lada_clients.site.check.role import SiteChecks
from lada_protocol.kinds import Kind
from lada_protocol.wire.transport_settings import TransportSettings
from lada_secure.check.running import Request, run_checks
from lada_secure.data.records import parse_pool, pool_hash
from lada_secure.errors import TransportError


@dataclass(frozen=True)
class Dialling:
    """What of a party's settings the check reads."""

    coordinator: str
    identity: Path
    party: str = "bank"
    passphrase: None = None
    transport: TransportSettings = field(default_factory=TransportSettings)


def propose(study, served, plan, *, pool=None):
    """Post a plan, and the pool beside it, as a coordinator does."""
    key = study.credentials("coordinator").signing_key
    posted = {Kind.PLAN: ({"certificate": "nobody reads it here"}, plan.to_bytes())}
    if pool is not None:
        posted[Kind.POOL] = ({}, pool)
    for kind, (body, raw) in posted.items():
        served.store.post(signed(study.roster, key, plan, kind, "coordinator", body, raw), raw)


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
        propose(study, served, plan)
        level, said = found(served)["plan.policy"]
        assert (level, "This auditor would refuse the plan" in said) == ("fault", True)
        assert [one.kind for _, one in served.store.visible("coordinator", 0)] == [Kind.PLAN]
    assert not (tmp_path / "state").exists()


def test_the_pool_that_is_posted_is_read_before_anybody_joins(study, tmp_path):
    raw = b"".join(
        b'{"sample_id": "%d", "question": "q", "choices": [], "answer": "a"}\n' % number
        for number in range(9)
    )
    digest = pool_hash(parse_pool(raw, where="here"))
    (tmp_path / "policy.toml").write_text(
        tomli_w.dumps(
            {
                "roster_sha256": study.roster.hash,
                "population": "people",
                "target_delta": 1e-5,
                "epsilon_cap_per_study": 8.0,
                "epsilon_cap_total": 8.0,
                "max_records_per_unit": 4,
            }
        )
    )
    settings = {
        "party": "bank",
        "identity": str(study.identity("bank")),
        "roster": str(study.folder / "roster.json"),
        "policy": str(tmp_path / "policy.toml"),
        "state_dir": str(tmp_path / "state"),
        "records": str(tmp_path / "records.jsonl"),
        "model": {"slm": str(tmp_path / "slm")},
        "cache_dir": str(tmp_path),
    }
    file = tmp_path / "site.toml"
    looked_at = ("settings", "policy", "roster", "identity", "coordinator", "pool", "plan.read")

    def found(served):
        file.write_text(tomli_w.dumps(settings | {"coordinator": served.server.address}))
        checks = [
            one
            for one in SiteChecks(SiteReading(file, Request())).entries()
            if one.name in looked_at
        ]
        return {one.check: (one.level, one.message) for one in run_checks(checks, quick=True)}

    with serving(study, tmp_path) as served:
        told = found(served)
        assert told["coordinator"][0] == "ok"
        assert told["pool"][0] == "skipped"
        assert "none is posted" in told["pool"][1]
        propose(study, served, make_plan(pool_sha256=digest), pool=raw)
        told = found(served)
        assert told["pool"] == ("ok", "the pool of the study that is proposed now: 9 samples")
        assert told["plan.read"][0] == "ok"
        assert {one.kind for _, one in served.store.visible("bank", 0)} == {Kind.PLAN, Kind.POOL}
    (tmp_path / "other").mkdir()
    with serving(study, tmp_path / "other") as served:
        propose(study, served, make_plan(), pool=raw)
        level, said = found(served)["pool"]
        assert (level, "is not the one in the plan" in said) == ("fault", True)
    (tmp_path / "third").mkdir()
    with serving(study, tmp_path / "third") as served:
        propose(study, served, make_plan(), pool=raw.replace(b'"a"', b'""', 1))
        level, said = found(served)["pool"]
        assert (level, "coordinator's pool:1: answer is empty" in said) == ("fault", True)
    assert not (tmp_path / "state").exists()
