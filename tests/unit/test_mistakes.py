"""Every mistake of docs/mistakes.md is found by the command that the page names, and costs nothing.

A row's command runs in this process. Of a check's list runs what is quick, and of the rest what the
row's own finding needs.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from checked_run import tree
from mistaken_study import Study, fresh_copy, invoke, ledgers, set_up
from mistakes import IDENTITIES, OF_DRAFT, OF_HUB, SETTINGS, Mistake
from mistakes_of_models import DRAFTS, MODELS, PLANS, STUDIES
from mistakes_of_places import DISKS, NETWORKS
from mistakes_of_records import RECORDS_ROWS
from mistakes_of_values import VALUES

from lada_clients.auditor.check import ROLE as AUDITORS
from lada_clients.site.check.role import ROLE as SITES
from lada_secure.check import commands
from lada_secure.check.findings import Finding
from lada_secure.check.running import Check, Request, RoleChecks
from lada_secure.errors import LadaError
from lada_server.check.role import ROLE as COORDINATORS

PAGE = Path(__file__).parents[2] / "docs" / "mistakes.md"
SECTIONS = {
    "Settings and policy": SETTINGS,
    "Single values": VALUES,
    "Keys, certificates, roster": IDENTITIES,
    "Records": RECORDS_ROWS,
    "Models": MODELS,
    "Pool and study": (*STUDIES, *DRAFTS),
    "Plan against policy and budget": PLANS,
    "Disk, ledger, clock": DISKS,
    "Network": NETWORKS,
}
MISTAKES = [one for section in SECTIONS.values() for one in section]
STATUS = {"fault": 2, "warning": 1, "works": 0}
# What takes seconds: weights, embeddings, clusters.
_SLOW = ("model.", "plan.sizes", "plan.uplink", "embedder", "probe.", "records.length", "pool.")
_SLOW_TOO = "plan"


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study as it was set up; its settings name the place beside it."""
    before = Path.cwd()
    root = tmp_path_factory.mktemp("mistakes") / "study"
    try:
        set_up(root)
    finally:
        os.chdir(before)
    shutil.copytree(root, root.with_name("pristine"))
    return root.with_name("pristine")


@pytest.fixture
def study(pristine: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Study]:
    """A fresh copy to be spoiled, and the folder that commands are typed in."""
    root = pristine.with_name("study")
    fresh_copy(pristine, root)
    monkeypatch.chdir(root)
    monkeypatch.delenv("LADA_KEY_PASSPHRASE", raising=False)
    for name in ("https_proxy", "http_proxy", "grpc_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with ExitStack() as ends:
        yield Study(root=root, patch=monkeypatch, ends=ends)


def quick_role(role: RoleChecks, wanted: str) -> RoleChecks:
    """The role with a shorter list; see above."""

    def checks(file: Path, request: Request) -> Sequence[Check]:
        every = {one.name: one for one in role.checks(file, request)}
        kept = {name for name in every if not name.startswith(_SLOW) and name != _SLOW_TOO}
        open_names = [wanted] if wanted in every else []
        while open_names:
            name = open_names.pop()
            kept.add(name)
            open_names += [one for one in every[name].needs if one not in kept]
        shorter = [one for name, one in every.items() if name in kept]
        return [replace(one, needs=tuple(set(one.needs) & kept)) for one in shorter]

    return replace(role, checks=checks)


def marked(mistake: Mistake) -> object:
    marks = [pytest.mark.slow] if mistake.slow else []
    return pytest.param(mistake, id=mistake.name, marks=marks)


@pytest.mark.parametrize("mistake", [marked(one) for one in MISTAKES if one.check])
def test_a_check_finds_it_says_what_is_wrong_and_writes_nothing(
    mistake: Mistake, study: Study
) -> None:
    roles = {one.role: quick_role(one, mistake.check) for one in (AUDITORS, COORDINATORS, SITES)}
    study.patch.setattr(commands, "known_roles", lambda: roles)
    mistake.spoil(study)
    check_found(mistake, study.root, mistake.command)


def check_found(mistake: Mistake, root: Path, command: str) -> None:
    """A command tells a mistake and blames nothing else, and changes no file."""
    before = tree(root)
    words = command.split()[1:]
    done = invoke(*words, *(("--quick",) if words[0] == "check" else ()), "--json")
    assert tree(root) == before
    assert done.exit_code == STATUS[mistake.level], done.output
    findings = [Finding.model_validate(one) for one in json.loads(done.stdout)["findings"]]
    said = [one.message for one in findings if one.check == mistake.check]
    assert mistake.says in "\n".join(said)
    at_fault = {one.check for one in findings if one.level in ("fault", "warning")}
    assert at_fault == (set() if mistake.level == "works" else {mistake.check}), done.stdout


DRAFTED = [one for one in STUDIES if one.command == OF_HUB and one.check in ("study", "plan")]


@pytest.mark.parametrize("mistake", [marked(one) for one in DRAFTED])
def test_a_dry_run_of_the_proposal_finds_what_is_wrong_with_a_study(
    mistake: Mistake, study: Study
) -> None:
    mistake.spoil(study)
    check_found(mistake, study.root, OF_DRAFT)


@pytest.mark.parametrize("mistake", [marked(one) for one in MISTAKES if not one.check])
def test_another_command_refuses_it_and_spends_nothing(mistake: Mistake, study: Study) -> None:
    mistake.spoil(study)
    before = ledgers(study.root)
    done = invoke(*mistake.command.split()[1:])
    assert isinstance(done.exception, LadaError), done.output
    assert done.exception.exit_status == STATUS[mistake.level]
    assert mistake.says in str(done.exception)
    assert ledgers(study.root) == before


def test_the_study_is_as_it_should_be_before_it_is_spoiled(study: Study) -> None:
    before = tree(study.root)
    for file in ("hospital-a/site.toml", "hub/server.toml", "auditor/auditor.toml"):
        done = invoke("check", file, "--quick")
        assert done.exit_code == 0, done.output
    assert tree(study.root) == before


def test_most_mistakes_are_found_by_a_check() -> None:
    assert len({one.name for one in MISTAKES}) == len(MISTAKES) >= 45
    assert sum(bool(one.check) and one.level != "works" for one in MISTAKES) >= 40


def table(rows: Sequence[Mistake]) -> str:
    """A section of the page."""
    head = "| what is wrong | found by | it says | epsilon spent |\n|---|---|---|---|\n"
    return head + "".join(f"{one.row}\n" for one in rows)


@pytest.mark.parametrize("title", SECTIONS)
def test_the_page_has_every_row_of_the_table(title: str) -> None:
    page = PAGE.read_text(encoding="utf-8")
    _, _, section = page.partition(f"\n## {title}\n")
    assert section.split("\n## ")[0].strip() == table(SECTIONS[title]).strip()
