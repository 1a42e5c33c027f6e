"""docs/use-the-model.md: its commands run and print what it shows; what a new user would meet."""

from __future__ import annotations

import json
import re
import shlex
import stat
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from finished_study import records, take_part, write_site
from rich.console import Console
from typer.testing import CliRunner

from lada_clients.site.commands import app
from lada_clients.site.results.asking import Reply, table_of
from lada_clients.site.results.candidates import folder_names
from lada_clients.site.results.report import build_report
from lada_clients.site.results.report_page import study_page
from lada_clients.site.results.study import open_study
from lada_protocol.events import EventLog, Joined, StepFinished
from lada_secure.data.records import inspect_records, write_json_lines
from lada_secure.data.tasks import Classification, Text

ROOT = Path(__file__).parents[5]
PAGE = (ROOT / "docs" / "use-the-model.md").read_text(encoding="utf-8")
COMMANDS = [
    (line[2:], printed)
    for block in re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)
    for line, printed in re.findall(r"^(\$ [^\n]+)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE)
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site after one study. Returns: its settings file."""
    settings = write_site(tmp_path_factory.mktemp("site"))
    take_part(settings)
    return settings


def run(*words: str, given: str | None = None) -> Result:
    group, *rest = words
    assert group == "site"
    return CliRunner().invoke(app, rest, input=given)


def pattern(shown: str) -> str:
    """What a page shows as a regular expression; three dots stand for anything."""
    return "".join(
        ".*" if part == "..." else re.escape(part) for part in re.split(r"(\.\.\.)", shown)
    )


def test_the_commands_of_the_page_print_what_it_shows(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(site.parent)
    assert len(COMMANDS) == 7
    for line, shown in COMMANDS:
        echoed, piped, command = line.rpartition(" | ")
        given = shlex.split(echoed)[1] + "\n" if piped else None
        done = run(*shlex.split(command)[1:], given=given)
        assert done.exit_code == 0, (line, done.output, done.exception)
        assert re.search(pattern(shown.rstrip()), done.output, re.DOTALL), (line, done.output)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_records_that_say_their_kind_have_figures_of_it(site: Path, tmp_path: Path) -> None:
    plain = inspect_records(site.parent / "held-out.jsonl").records
    kinds = [Classification() if one.choices else Text() for one in plain]
    told = [replace(one, task=kind) for one, kind in zip(plain, kinds, strict=True)]
    write_json_lines(tmp_path / "told.jsonl", told)
    found = evaluated(site, "--held-out", str(tmp_path / "told.jsonl"))
    assert evaluated(site)["models"][1]["kinds"] == []
    for model in found["models"]:
        for one in model["kinds"]:
            first = {"classification": "macro-F1", "text": "exact match"}[one["kind"]]
            assert one["figures"][0]["name"] == first
    assert {one["kind"] for one in found["comparisons"][0]["kinds"]} == {
        kind.kind for kind in kinds
    }
    # The newest evaluation is the one that the report shows.
    evaluated(site, "--held-out", str(tmp_path / "told.jsonl"))
    page = study_page(build_report(open_study(site, None)))
    assert "kind of task" in page
    for kind in kinds:
        assert kind.kind in page
    done = run("site", "evaluate", "--settings", str(site), "--no-general", "--held-out",
               str(tmp_path / "told.jsonl"))  # fmt: skip
    assert f"  {'classification of' if plain[0].choices else 'text'}" in done.output


@pytest.mark.parametrize("command", ["export", "evaluate", "ask", "report"])
def test_every_command_has_help_with_an_example(command: str) -> None:
    done = run("site", command, "--help")
    assert done.exit_code == 0
    told = " ".join(done.output.split())
    assert f"Example: lada site {command}" in told
    for option in ("--settings", "--study", "--json"):
        assert option in told


def evaluated(site: Path, *words: str) -> dict[str, Any]:
    done = run("site", "evaluate", "--settings", str(site), "--no-general", "--json", *words)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_an_evaluation_compares_all_that_is_named_and_keeps_count(tmp_path: Path) -> None:
    site = write_site(tmp_path)
    take_part(site)
    take_part(site, study_id="study-2", rounds=1)
    exported = tmp_path / "exported"
    named = ("--settings", str(site), "--study", "study-1")
    assert run("site", "export", *named, "--out", str(exported)).exit_code == 0
    merged = tmp_path / "merged"
    assert run("site", "export", *named, "--out", str(merged), "--merge").exit_code == 0
    first = evaluated(
        site, "--study", "study-1", "--against-round", "0", "--against-study", "study-2",
        "--against", str(exported), "--against", str(merged),
    )  # fmt: skip
    names = ["before", "after", "round 0", "study-2 round 0", "exported", "merged"]
    assert [one["name"] for one in first["models"]] == names
    assert first["evaluated_before"] == 0
    figures = {one["name"]: one for one in first["models"]}
    for folder in ("exported", "merged"):
        # The same model in another form.
        assert figures[folder]["accuracy"] == figures["after"]["accuracy"]
    assert {(one["model"], one["against"]) for one in first["comparisons"]} >= {
        ("after", "before"),
        ("exported", "after"),
    }
    topics = {one["topic"]: one["example"] for one in first["topics"]}
    assert len(topics) == 2
    assert sum(one["accuracy"]["n"] for one in figures["after"]["topics"]) == 10
    # The same file under another name, then another file.
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes((tmp_path / "held-out.jsonl").read_bytes())
    again = evaluated(site, "--study", "study-2", "--held-out", str(copy))
    assert again["evaluated_before"] == 1
    lines = (tmp_path / "held-out.jsonl").read_bytes().splitlines()
    copy.write_bytes(b"\n".join(reversed(lines)) + b"\n")
    assert evaluated(site, "--study", "study-2", "--held-out", str(copy))["evaluated_before"] == 2
    write_json_lines(copy, records(6, first=300, name="n"))
    assert evaluated(site, "--study", "study-2", "--held-out", str(copy))["evaluated_before"] == 0
    log = (tmp_path / "state" / "evaluations.jsonl").read_text()
    assert len(log.splitlines()) == 4
    kept = open_study(site, "study-1").folder / "evaluation-round-1.json"
    assert json.loads(kept.read_bytes()) == first
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    card = tmp_path / "with-figures"
    done = run("site", "export", *named, "--out", str(card), "--with-figures")
    assert "does not cover" in done.output
    text = (card / "README.md").read_text().replace("\\", "")
    assert f"- after: accuracy {figures['after']['accuracy']['value']:.1%}" in text
    assert stat.S_IMODE((card / "README.md").stat().st_mode) == 0o600
    assert "in the training file" not in text
    # What else the site looked at, and who was lost, is nobody else's.
    assert "study-2" not in text
    assert not any(f"h{at}" in text for at in range(100, 110))


def test_figures_of_people_who_were_trained_on_say_so_wherever_they_go(tmp_path: Path) -> None:
    site = write_site(tmp_path)
    take_part(site)
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes((tmp_path / "records.jsonl").read_bytes())
    found = evaluated(site, "--held-out", str(copy))
    assert found["trained_units"] == found["units"] > 0
    card = tmp_path / "card"
    done = run("site", "export", "--settings", str(site), "--out", str(card), "--with-figures")
    assert done.exit_code == 0
    said = f"{found['units']} of these units have records in the training file as well"
    assert said in (card / "README.md").read_text().replace("\\", "")
    (tmp_path / "records.jsonl").unlink()
    assert evaluated(site, "--held-out", str(copy))["trained_units"] is None


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (("evaluate", "--round", "7"), "--round 7: study study-1 has the trained rounds 0, 1 here"),
        (("evaluate", "--held-out", "none.jsonl"), "none.jsonl"),
        (("evaluate", "--against", "."), "expected a folder with adapter_config.json"),
        (("evaluate", "--against-study", "no"), "no study no here yet"),
        (("evaluate", "--general", "none.jsonl", "--no-general"), "contradict each other"),
        (("evaluate", "--study", "other"), "no study other here yet"),
        (("ask", "why", "--choice", "one"), "expected 2 to 26 of them, got 1"),
        (("ask", "why", "--choice", "one", "--choice", "one"), "expected different texts"),
        (("ask", "  "), "expected a text, got nothing"),
        (("ask", "why " * 2000), "shorten it, or lower --max-new-tokens"),
        (("ask", "why", "--max-new-tokens", "4096"), "expected less than"),
        (("report", "--out", "site.toml"), "expected a folder, site.toml is a file"),
        (("export", "--out", "cache"), "cache is there already; expected a new folder"),
    ],
)
def test_what_is_wrong_is_said_with_what_to_do(
    site: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], match: str
) -> None:
    monkeypatch.chdir(site.parent)
    done = run("site", *words, "--settings", "site.toml")
    assert getattr(done.exception, "exit_status", None) == 2
    assert match in str(done.exception)


def test_pickled_adapters_and_those_of_another_base_are_refused(site: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    assert run("site", "export", "--settings", str(site), "--out", str(out)).exit_code == 0
    facts = json.loads((out / "lada.json").read_text())
    facts["slm"]["weights_sha256"] = "0" * 64
    (out / "lada.json").write_text(json.dumps(facts))
    asked = ("site", "ask", "why", "--settings", str(site), "--against", str(out))
    assert "its base model has the weights 0000000000000000" in str(run(*asked).exception)
    (out / "adapter_model.safetensors").rename(out / "adapter_model.bin")
    assert "pickled weights are not read" in str(run(*asked).exception)


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_the_page_has_no_script_and_says_what_it_must(site: Path, tmp_path: Path) -> None:
    evaluated(site)
    done = run("site", "report", "--settings", str(site), "--out", str(tmp_path), "--json")
    facts = json.loads(done.stdout)
    page, document = tmp_path / "study-report.html", tmp_path / "study-report.json"
    assert json.loads(document.read_bytes()) == facts
    assert {stat.S_IMODE(one.stat().st_mode) for one in (page, document)} == {0o600}
    text = page.read_text()
    tags = _Tags()
    tags.feed(text)
    assert not {tag for tag, _ in tags.found} & {"script", "iframe", "img", "link", "object"}
    assert not [name for _, own in tags.found for name in own if name.startswith("on")]
    slm = open_study(site, None).slm
    for said in ("Private.", "dr-meyer", "statistics", "training", slm.weights_sha256, "riddle me"):
        assert said in text
    assert [one["round"] for one in facts["rounds"]] == [0, 1]
    assert facts["rounds"][1]["evaluation"]["models"][1]["name"] == "after"
    assert {one["purpose"] for one in facts["spending"]["purposes"]} == {"statistics", "training"}
    assert (facts["messages_up"], facts["work"][0]["bytes_up"]) == (3, 1000)
    assert facts["epsilon"] > 0.0


def test_a_title_that_is_html_is_text_on_the_page(site: Path) -> None:
    report = build_report(open_study(site, None))
    hostile = "<script>alert(1)</script>"
    terms = report.study.model_copy(update={"title": hostile})
    page = study_page(report.model_copy(update={"study": terms}))
    assert hostile not in page
    assert "&lt;script&gt;" in page


def test_events_of_two_studies_in_one_log_are_told_apart(tmp_path: Path) -> None:
    site = write_site(tmp_path)
    one = take_part(site, rounds=1)
    other = take_part(site, study_id="study-2", rounds=1)
    with (tmp_path / "state" / "events.jsonl").open("ab") as file:
        log = EventLog(party="site-a", sink=file.write, clock=lambda: 1.8e9)
        log.write(Joined, round_id=0, step="plan", study_id=one.study_id, plan_hash=one.hash)
        log.write(StepFinished, round_id=1, step="filter", seconds=2, bytes_up=5, bytes_down=0)
        file.write(b'{"event":"torn')
    found = build_report(open_study(site, "study-1"))
    assert [step.step for step in found.work] == ["demand", "filter"]
    assert [step.step for step in build_report(open_study(site, "study-2")).work] == ["demand"]
    assert [study.study_id for study in found.others] == [other.study_id]


def test_commands_answer_while_the_state_folder_is_held(site: Path) -> None:
    # A running site holds the lock; looking must not wait for it.
    from lada_secure.storage.state_folder import held_state_folder

    with held_state_folder(site.parent / "state", party="site-a", role="site"):
        done = CliRunner().invoke(app, ["ask", "why", "--settings", str(site)])
    assert done.exit_code == 0, done.output


def test_folders_of_one_name_are_told_apart_without_their_paths() -> None:
    found = folder_names([Path("/a/model"), Path("/b/model"), Path("/b/other"), Path("/b/after")])
    assert found == ["model (1)", "model (2)", "other", "after (4)"]


def test_a_question_in_another_encoding_is_refused(site: Path) -> None:
    done = CliRunner().invoke(app, ["ask", "--settings", str(site)], input=b"\xff")
    assert "expected UTF-8 on standard input, got another byte at 0" in str(done.exception)


def test_what_a_model_writes_moves_no_cursor() -> None:
    reply = Reply(name="after", path="a\x1b[2Jb\x07\u202ec\nd", answer=None, probabilities={})
    told = StringIO()
    Console(file=told, width=80, markup=False).print(table_of([reply]))
    assert not {"\x1b", "\x07", "\u202e"} & set(told.getvalue())
