"""A site whose SLM the plan does not allow takes no part, whoever looks away."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from protocol_world import SLM, make_plan
from simulated_parties import World, exported, make_world
from simulated_site import FOUR, Outgoing

from lada_clients.reports.audit.report import build_report
from lada_clients.reports.audit.report_page import privacy_page
from lada_clients.reports.audit.verdict_words import verdict_json, verdict_lines
from lada_protocol.evidence.joint import verify_exports
from lada_protocol.evidence.study import verify_evidence
from lada_protocol.kinds import Kind
from lada_protocol.rounds import admission
from lada_protocol.rounds.tasks import Done
from lada_protocol.wire.messages import FaultBody, parse_body
from lada_secure.models.identity import ModelIdentity, SlmPlan

PLAN = make_plan(rounds=1, slm=SlmPlan(families=("LlamaForCausalLM",), max_parameters=1000))
OTHERS = ["site-b", "site-c", "site-d"]
WRONG = SLM.model_copy(update={"architecture": "GPT2LMHeadModel", "parameters": 1001})


def study(folder: Path, slm: ModelIdentity = WRONG) -> World:
    world = make_world(folder, sites=FOUR, plan=PLAN)
    world.sites["site-a"].slm = slm
    return world


def cohorts(world: World) -> list[list[str]]:
    return [one.header.body["sites"] for one in world.coordinator.index.sent(Kind.COHORT)]


def test_the_auditor_refuses_it_by_name_and_the_others_go_on(tmp_path: Path) -> None:
    world = study(tmp_path)
    world.run()
    assert world.coordinator.next() == Done()
    refusal = world.coordinator.index.find(Kind.REFUSAL, sender="auditor", to="site-a")
    assert refusal is not None
    fault = parse_body(refusal, FaultBody)
    assert fault.code == "slm_not_allowed"
    assert fault.message == (
        "site-a: the plan does not allow its SLM: its architecture is GPT2LMHeadModel, allowed are "
        "LlamaForCausalLM; it has 1,001 parameters, allowed are 1,000"
    )
    assert all(cohort == OTHERS for cohort in cohorts(world))
    found = verify_evidence(exported(world, tmp_path / "out"))
    assert found.good, found.faults
    assert set(found.slms) == set(OTHERS)


def test_where_the_auditor_looks_away_coordinator_and_verifier_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lada_clients.auditor.service.check_slm", lambda *_, **__: None)
    world = study(tmp_path)
    world.run()
    assert world.coordinator.next() == Done()
    assert all(cohort == OTHERS for cohort in cohorts(world))
    found = verify_evidence(exported(world, tmp_path / "out"))
    assert [fault for fault in found.faults if "auditor admitted site-a, but the plan" in fault]


def test_an_acceptance_that_names_no_slm_is_no_acceptance(tmp_path: Path) -> None:
    world = study(tmp_path, SLM)

    def nameless(kind: Kind, outgoing: Outgoing) -> Outgoing:
        body: Mapping[str, Any] = outgoing.body
        if kind is Kind.ACCEPTANCE:
            body = {name: value for name, value in body.items() if name != "slm"}
        return Outgoing(body=body, payload=outgoing.payload)

    world.sites["site-a"].tamper = nameless
    world.run()
    assert all(cohort == OTHERS for cohort in cohorts(world))
    said = admission.slm_refusal(world.coordinator.index, "site-a")
    assert "slm: Field required" in said


def test_evidence_and_reports_name_every_site_s_model(tmp_path: Path) -> None:
    own = SLM.model_copy(update={"weights_sha256": "6" * 64, "parameters": 900, "revision": "r7"})
    world = study(tmp_path, own)
    world.run()
    files = exported(world, tmp_path / "out")
    found = verify_exports({"study": files})
    assert found.good, found.faults
    lines = list(verdict_lines(found))
    assert (
        "  SLM of site-a: LlamaForCausalLM, 900 parameters, licence Apache-2.0, revision r7"
    ) in lines
    assert f"    weights {'6' * 64}" in lines
    assert verdict_json(found)["slms"]["site-a"] == own.model_dump()
    assert verdict_json(found)["slms"]["site-b"] == SLM.model_dump()
    report = build_report(files)
    assert report.sites[0].slm is not None
    assert report.sites[0].slm.weights_sha256 == "6" * 64
    page = privacy_page(report)
    assert "6" * 64 in page
    assert "900 parameters" in page
