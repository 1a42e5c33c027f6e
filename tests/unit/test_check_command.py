"""`lada check` as a user meets it: exit status, lines, JSON, and nothing left behind."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from checked_run import SITE, change_toml, tree
from click.testing import Result
from typer.testing import CliRunner

from lada_clients.auditor.check import ROLE as AUDITOR
from lada_clients.site.check.role import ROLE as SITES
from lada_lab.mock.layout import RunLayout
from lada_secure.check import commands
from lada_secure.check.findings import CheckReport
from lada_server.check.role import ROLE as COORDINATOR

REPOSITORY = Path(__file__).parents[2]
PAGE = REPOSITORY / "docs" / "check.md"
SCHEMA = REPOSITORY / "docs" / "check.schema.json"
ROLES = {one.role: one for one in (AUDITOR, COORDINATOR, SITES)}


@pytest.fixture(autouse=True)
def _roles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Roles by their code, whatever version is installed; see the test of entry points."""
    monkeypatch.setattr(commands, "known_roles", lambda: ROLES)


def check(*arguments: str | Path) -> Result:
    return CliRunner().invoke(
        commands.app, [str(one) for one in arguments], env={"COLUMNS": "200", "NO_COLOR": "1"}
    )


def report(*arguments: str | Path) -> CheckReport:
    done = check(*arguments, "--json")
    assert len(done.stdout.splitlines()) == 1
    found = CheckReport.model_validate_json(done.stdout)
    assert done.exit_code == found.exit_status
    return found


def test_roles_are_found_by_their_entry_points() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    named = project["entry-points"][commands.GROUP]
    found = {}
    for role, reference in named.items():
        module, _, name = reference.partition(":")
        found[role] = getattr(importlib.import_module(module), name)
    assert found == ROLES
    assert project["entry-points"]["lada.commands"]["check"] == "lada_secure.check.commands:app"


def test_every_role_is_checked_and_nothing_is_written(checked_run: RunLayout) -> None:
    before = tree(checked_run.root.parent)
    for folder, role in (
        (checked_run.coordinator, "coordinator"),
        (checked_run.auditor, "auditor"),
        (checked_run.site(SITE), "site"),
    ):
        found = report(folder.settings, "--questions", "4")
        assert (found.role, found.file) == (role, str(folder.settings))
        assert not [one for one in found.findings if one.level == "fault"], found
    assert tree(checked_run.root.parent) == before


def test_the_exit_status_says_how_it_stands(checked_run: RunLayout) -> None:
    settings = checked_run.site(SITE).settings
    assert check(settings, "--quick").exit_code == 0
    held_out = settings.with_name("held-out.jsonl")
    held_out.write_text(settings.with_name("records.jsonl").read_text())
    warned = check(settings, "--quick")
    assert warned.exit_code == 1
    assert "warning records          " in warned.stdout
    held_out.write_text("{}\n")
    refused = check(settings, "--quick")
    assert refused.exit_code == 2
    assert re.search(r"^fault +records +.*held-out.jsonl:1: lacks ", refused.stdout, re.M)
    assert "site: " in refused.stdout.splitlines()[-1]
    assert "1 fault(s)" in refused.stdout.splitlines()[-1]


def test_a_file_that_is_no_settings_file_is_one_fault(tmp_path: Path) -> None:
    missing = report(tmp_path / "nowhere.toml")
    assert (missing.role, missing.level, len(missing.findings)) == ("", "fault", 1)
    assert "cannot read" in missing.findings[0].message
    (tmp_path / "study.toml").write_text('title = "a study"\n')
    done = check(tmp_path / "study.toml")
    assert done.exit_code == 2
    assert "has the keys of no role's settings file" in done.stdout


def test_another_role_than_the_file_says_is_refused(checked_run: RunLayout) -> None:
    found = report(checked_run.site(SITE).settings, "--role", "auditor")
    assert "of a site, and --role says auditor" in found.findings[0].message
    assert report(checked_run.auditor.settings, "--role", "auditor").level == "ok"


def test_the_schema_of_the_json_is_the_documented_one() -> None:
    assert json.loads(SCHEMA.read_text()) == CheckReport.model_json_schema()


def test_a_secret_of_a_record_is_not_said(checked_run: RunLayout) -> None:
    settings = checked_run.site(SITE).settings
    row = {"record_id": "SENTINEL", "unit": "SENTINEL", "question": "SENTINEL", "choices": []}
    settings.with_name("records.jsonl").write_text(json.dumps(row) + "\n")
    done = check(settings, "--quick", "--json")
    assert done.exit_code == 2
    assert "SENTINEL" not in done.stdout + done.stderr


def test_the_example_of_the_page_is_what_comes_out(
    checked_run: RunLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(checked_run.root)
    blocks = re.findall(r"```console\n\$ lada check (.*?)\n(.*?)```", PAGE.read_text(), re.S)
    assert len(blocks) == 2
    for arguments, shown in blocks:
        if "speed" in shown:
            change_toml(checked_run.site(SITE).settings, speed="fast")
        done = check(*shlex.split(arguments))
        line = re.compile(r"^(ok|warning|fault|skipped) +(\S+)", re.M)
        assert line.findall(done.stdout) == line.findall(shown)
        assert done.stdout.splitlines()[-1] == shown.splitlines()[-1]


def test_progress_is_told_where_there_is_no_terminal(
    checked_run: RunLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lada_secure.check.screen._TELL_EVERY_S", 0.0)
    done = check(checked_run.site(SITE).settings, "--questions", "40")
    assert "probe.styles: 16 of 80" in done.stderr
    assert "probe.forms: 120 of 120" in done.stderr


def test_a_check_that_is_interrupted_leaves_nothing(checked_run: RunLayout) -> None:
    before = tree(checked_run.root.parent)
    code = (
        "import sys\n"
        "from lada_secure.check import commands\n"
        "from lada_clients.site.check.role import ROLE\n"
        "commands.known_roles = lambda: {'site': ROLE}\n"
        "commands.app()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, checked_run.site(SITE).settings, "--questions", "100000"],
        env={**os.environ, "NO_COLOR": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "model.answers" in line:
                break
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode not in (0, 1, 2)
    assert "Traceback" not in errors
    assert tree(checked_run.root.parent) == before
