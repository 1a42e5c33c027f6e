"""The documents name every setting and field there is, and their links lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from pydantic import BaseModel
from typer.core import TyperGroup
from typer.main import get_command

from lada_clients.auditor.runner import AuditorSettings
from lada_clients.site.settings import SitePolicy, SiteSettings
from lada_lab.mock.report import Report
from lada_secure.allocation.strategies import STRATEGIES
from lada_secure.cli import build_app
from lada_server.settings import ServerSettings, StudySettings

ROOT = Path(__file__).parents[4]
ROOMS = ("lada_secure", "protocol", "clients", "server", "lab", "deploy", "tests")
DOCUMENTS = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(page for room in ROOMS for page in (ROOT / room).rglob("*.md")),
    ]
)
# Decisions and changes speak of the tree as it was then.
OF_TODAY = [page for page in DOCUMENTS if "adr" not in page.parts and page.stem != "CHANGELOG"]
PLACE = re.compile(rf"`((?:{'|'.join(ROOMS)}|docs)/[\w./-]*[a-z/])`")
FENCE = re.compile(r"^```[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^(?:\$ )?(?:\.venv/bin/)?lada ([^\n]+)$", re.MULTILINE)
LINK = re.compile(r"\]\(([^)#\s]+)(?:#([^)\s]+))?\)")


def fields_of(model: type[BaseModel]) -> set[str]:
    """Names of all fields of a model and of the models inside it."""
    names: set[str] = set()
    schema = model.model_json_schema()
    for part in (schema, *schema.get("$defs", {}).values()):
        names |= set(part.get("properties", {}))
    return names


@pytest.mark.parametrize(
    "model", [SiteSettings, SitePolicy, AuditorSettings, ServerSettings, StudySettings]
)
def test_the_settings_page_names_every_key(model: type[BaseModel]) -> None:
    text = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    parts = {
        "privacy", "statistics", "training", "distillation", "allocation", "paths", "uplink",
        "guide", "verifier",
    }  # fmt: skip
    missing = {
        name
        for name in fields_of(model)
        if f"`{name}`" not in text and not (name in parts and f"`[{name}]`" in text)
    }
    assert missing == set()


def test_the_settings_page_names_every_strategy() -> None:
    text = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert [name for name in STRATEGIES if f"`{name}`" not in text] == []


def test_the_report_page_names_every_field() -> None:
    text = (ROOT / "docs" / "report.md").read_text(encoding="utf-8")
    named = set(re.findall(r"[a-z_0-9]+", " ".join(re.findall(r"`([^`]+)`", text))))
    assert fields_of(Report) - named == set()


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_documents_lead_somewhere(page: Path) -> None:
    for target, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        if target.startswith("http"):
            continue
        path = (page.parent / target).resolve()
        assert path.exists(), f"{page.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {
                re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-")
                for heading in headings
            }
            assert anchor in anchors, f"{page.name} links to {target}#{anchor}"


@pytest.mark.parametrize("page", OF_TODAY, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_and_folders_that_a_page_names_are_there(page: Path) -> None:
    named = PLACE.findall(page.read_text(encoding="utf-8"))
    assert [place for place in named if not (ROOT / place).exists()] == []


def test_every_decision_is_in_the_list() -> None:
    folder = ROOT / "docs" / "adr"
    listed = set(re.findall(r"\((\d{4}-[a-z-]+\.md)\)", (folder / "README.md").read_text("utf-8")))
    assert listed == {page.name for page in folder.glob("0*.md")}


def commands_of(page: Path) -> list[str]:
    """Every `lada` command in the fenced blocks of a page, without the first word."""
    blocks = FENCE.findall(page.read_text(encoding="utf-8"))
    return [one for block in blocks for one in COMMAND.findall(block.replace("\\\n", " "))]


@pytest.mark.parametrize(
    ("page", "command"),
    [(page, one) for page in DOCUMENTS for one in commands_of(page)],
    ids=lambda one: one.name if isinstance(one, Path) else one,
)
def test_every_command_in_the_documents_has_the_options_that_it_names(
    page: Path, command: str
) -> None:
    words = shlex.split(command, comments=True)
    found = get_command(build_app())
    # `lada check` is a group without commands: an entry point that is a command by itself.
    while isinstance(found, TyperGroup) and found.commands:
        assert words[0] in found.commands, f"{page.name}: lada {command}"
        found = found.commands[words.pop(0)]
    known = {name for one in found.params for name in (*one.opts, *one.secondary_opts)}
    options = {word for word in words if re.match(r"-(?![0-9])", word)}
    assert options <= known, f"{page.name}: {command}"
