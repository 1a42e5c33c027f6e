"""`lada pool` as a coordinator meets it: figures by hand, the LLM of the settings, help, JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from checked_run import change_toml, llm_folder, tree
from click.testing import Result
from completions_server import MODEL, CompletionsServer, loaded, serving
from typer.testing import CliRunner

from lada_lab.mock.layout import RunLayout
from lada_secure.data.records import PoolSample, pool_hash, read_pool, write_json_lines
from lada_secure.errors import LadaError
from lada_server.pool.commands import app

LONG = "A person of forty years has had a fever and a sore throat for three days and a cough"
SAMPLES = (
    ("s1", f"{LONG}?", ("flu", "gout"), "flu", "CC BY 4.0", "a book"),
    ("s2", f"{LONG}?", ("gout", "flu"), "gout", "CC BY 4.0", None),
    ("s3", f"{LONG} too?", ("flu", "gout"), "flu", None, None),
    ("s4", "How much is 2 + 3?", (), "5", None, None),
    ("s5", "How much is 2 + 3?", (), "5", None, None),
)


def lada(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def facts(*words: str) -> dict[str, Any]:
    done = lada(*words, "--json")
    assert done.exit_code == 0, (done.output, done.exception)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    path = tmp_path / "pool.jsonl"
    write_json_lines(
        path,
        [
            PoolSample(
                sample_id=name,
                question=question,
                choices=choices,
                answer=answer,
                licence=licence,
                source=source,
            )
            for name, question, choices, answer, licence, source in SAMPLES
        ],
    )
    return path


def test_a_report_by_hand(pool: Path) -> None:
    found = facts("report", str(pool), "--clusters", "2")
    assert found["samples"] == 5
    assert found["pool_sha256"] == pool_hash(read_pool(pool))
    assert found["licences"] == {"CC BY 4.0": 2, "": 3}
    assert found["sources"] == {"a book": 1, "": 4}
    assert found["answers"] == {
        "choices": {"0": 2, "2": 3},
        "places": {"A": 3},
        "different": 3,
        "commonest": {"5": 2, "flu": 2, "gout": 1},
    }
    assert found["alike"]["duplicates"] == [["s4", "s5"]]
    assert found["alike"]["conflicts"] == [{"s1": "flu", "s2": "gout"}]
    assert found["alike"]["near"] == [["s3", "s1", True]]
    assert sorted(one["samples"] for one in found["topics"]) == [2, 3]
    assert {one["right"] for one in found["topics"]} == {None}
    assert (found["lengths"], found["difficulty"]) == (None, None)


def test_people_are_told_the_same(pool: Path) -> None:
    said = lada("report", str(pool), "--clusters", "2").output
    for line in (
        "questions: 2 open, 3 with 2 choices",
        "gold choices by their place: A 3",
        "licences: none named 3, CC BY 4.0 2",
        "1 contradiction(s) of gold answers\n  s1: flu, s2: gout",
        "name --tokenizer, or the coordinator's --settings",
    ):
        assert line in said


def test_the_settings_say_topics_lengths_and_llm(checked_run: RunLayout) -> None:
    settings = checked_run.coordinator.settings
    before = tree(checked_run.root.parent)
    plain = facts("report", "--settings", str(settings))
    assert plain["difficulty"] is None
    assert plain["lengths"]["prompt"]["most"] >= plain["lengths"]["prompt"]["median"] > 0
    asked = facts("report", "--settings", str(settings), "--llm")
    found = asked["difficulty"]
    assert sum(found["confidence"]) == asked["samples"] == plain["samples"]
    assert len(found["hardest"]) == 10
    right = sum(one["right"] * one["samples"] for one in asked["topics"] if one["samples"])
    assert right == pytest.approx(found["right"] * asked["samples"])
    assert tree(checked_run.root.parent) == before


def test_a_served_llm_is_asked_and_nothing_of_it_is_kept(
    checked_run: RunLayout, served_folder: Path, pool: Path
) -> None:
    with serving(CompletionsServer(loaded(served_folder))) as server:
        llm = {"endpoint": server.url, "model": MODEL, "tokenizer": str(served_folder)}
        change_toml(checked_run.coordinator.settings, llm=llm)
        before = tree(checked_run.root.parent)
        found = facts(
            "report", str(pool), "--settings", str(checked_run.coordinator.settings), "--llm"
        )
        assert sum(found["difficulty"]["confidence"]) == 5
    assert tree(checked_run.root.parent) == before


def test_tokens_are_counted_without_settings(checked_run: RunLayout, pool: Path) -> None:
    found = facts("report", str(pool), "--tokenizer", str(llm_folder(checked_run)))["lengths"]
    assert found["answer"]["least"] >= 1
    assert found["prompt"]["most"] > found["answer"]["most"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("report",), "expected a POOL to look at"),
        (("report", "p", "--llm"), "which one the coordinator's --settings say"),
        (("report", "p", "--settings", "s", "--clusters", "2"), "--clusters: the coordinator's"),
        (("report", "nowhere.jsonl"), "cannot read nowhere.jsonl"),
    ],
)
def test_what_makes_no_report_is_said(words: tuple[str, ...], said: str) -> None:
    done = lada(*words)
    assert isinstance(done.exception, LadaError)
    assert said in str(done.exception)
    assert done.exception.exit_status == 2


@pytest.mark.parametrize("command", ["import", "report"])
def test_help_has_an_example(command: str) -> None:
    assert f"lada pool {command}" in lada(command, "--help").output
