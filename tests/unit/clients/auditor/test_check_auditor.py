"""The auditor's part of `lada check`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checked_run import change_toml, findings_of, levels, told, tree
from site_doubles import site_plan

from lada_clients.auditor.check import ROLE
from lada_clients.auditor.runner import AuditorSettings
from lada_lab.mock.layout import RunLayout
from lada_protocol.evidence.export import PLAN_FILE
from lada_protocol.plan import parse_plan
from lada_secure.check.running import Request
from lada_secure.errors import ParameterError

Spoil = Callable[[RunLayout], None]


def _settings(**changes: Any) -> Spoil:
    return lambda layout: change_toml(layout.auditor.settings, **changes)


def _plan(folder: Path, **changes: object) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / PLAN_FILE
    path.write_bytes(site_plan().model_copy(update=changes).to_bytes())
    return path


MISTAKES: dict[str, tuple[Spoil, str, str, str]] = {
    "a cap of nothing": (_settings(epsilon_cap=0), "settings", "fault", "epsilon_cap"),
    "another roster": (_settings(roster_sha256="ab" * 32), "roster", "fault", "pins abab"),
    "a site's certificates": (
        _settings(identity="../site-a/identity"),
        "identity",
        "fault",
        "site-a",
    ),
    "an export folder that is a file": (
        _settings(export_dir="auditor.toml"),
        "export",
        "fault",
        "export_dir: ",
    ),
}


def test_an_auditor_as_it_should_be(checked_run: RunLayout) -> None:
    by_name = levels(findings_of(ROLE, checked_run.auditor))
    assert by_name.pop("plan.policy") == "skipped"
    assert by_name.pop("coordinator") == "skipped"
    assert set(by_name.values()) == {"ok"}


@pytest.mark.parametrize(("spoil", "check", "level", "said"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_told_by_its_check(
    checked_run: RunLayout, spoil: Spoil, check: str, level: str, said: str
) -> None:
    spoil(checked_run)
    before = tree(checked_run.root)
    found = findings_of(ROLE, checked_run.auditor)
    assert {name: one for name, one in levels(found).items() if one in ("warning", "fault")} == {
        check: level
    }
    assert said in told(found, check)
    assert tree(checked_run.root) == before


def test_an_export_folder_of_another_study_says_where_the_next_one_goes(
    checked_run: RunLayout,
) -> None:
    _plan(checked_run.export)
    found = findings_of(ROLE, checked_run.auditor)
    assert levels(found)["export"] == "ok"
    assert "the next one's goes into" in told(found, "export")
    assert "export/studies" in told(found, "export")


def test_a_plan_above_the_cap_is_told(checked_run: RunLayout, tmp_path: Path) -> None:
    plan = _plan(tmp_path / "plan")
    found = findings_of(ROLE, checked_run.auditor, plan=plan)
    assert "epsilon_cap 100.0 is above 8.0" in told(found, "plan.policy")
    _settings(epsilon_cap=100.0)(checked_run)
    assert levels(findings_of(ROLE, checked_run.auditor, plan=plan))["plan.policy"] == "ok"
    _plan(checked_run.export, study_id="earlier")
    mixed = findings_of(ROLE, checked_run.auditor, plan=plan)
    assert f"studies/{parse_plan(plan.read_bytes()).study_id}-" in told(mixed, "export")
    assert levels(mixed)["export"] == "ok"


def test_the_auditor_has_no_model_to_ask(checked_run: RunLayout) -> None:
    with pytest.raises(ParameterError, match="no model to ask"):
        ROLE.checks(checked_run.auditor.settings, Request(pool=Path("pool.jsonl")))


def test_the_marks_are_keys_of_this_role_that_its_file_must_have() -> None:
    fields = AuditorSettings.model_fields
    assert all(fields[mark].is_required() for mark in ROLE.marks)
