"""The coordinator's part of `lada check`, with an LLM here and behind a real server."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checked_run import change_toml, findings_of, levels, llm_folder, told, tree
from completions_server import MODEL, CompletionsServer, loaded, serving

from lada_lab.mock.layout import RunLayout
from lada_secure.check.running import Request
from lada_secure.errors import ParameterError
from lada_server.check.role import ROLE
from lada_server.settings import ServerSettings

Spoil = Callable[[RunLayout], None]


def _settings(**changes: Any) -> Spoil:
    """`llm` is a text or a table: it is replaced as a whole."""
    return lambda layout: change_toml(layout.coordinator.settings, **changes)


def _study(**changes: Any) -> Spoil:
    return lambda layout: change_toml(layout.coordinator.root / "study.toml", **changes)


def _sample(**changes: Any) -> Spoil:
    def add(layout: RunLayout) -> None:
        row = {"sample_id": "new", "question": "1+1", "choices": [], "answer": "2", **changes}
        with (layout.coordinator.root / "pool.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    return add


def _no_weights(layout: RunLayout) -> None:
    (llm_folder(layout) / "model.safetensors").unlink()


MISTAKES: dict[str, tuple[Spoil, str, str]] = {
    "an unknown key": (_settings(llms="x"), "settings", "unknown key 'llms'"),
    "a study that is not there": (_settings(study="no.toml"), "study", "cannot read"),
    "an unknown answer form": (_study(answer_form="sung"), "study", "answer_form"),
    "an unknown strategy": (
        _study(allocation={"strategy": "ladaa"}),
        "plan",
        "the study: allocation: ",
    ),
    "a scale of nothing": (
        _study(statistics={"integer_scale": 1}),
        "plan",
        "the study: statistics: ",
    ),
    "an unknown loss": (
        _study(distillation={"contrastive_form": "foo"}),
        "plan",
        "the study: distillation: ",
    ),
    "more than the pool has": (_study(paths={"budget": 10**6}), "plan", "paths.budget is 1000000"),
    "an unknown embedder": (_study(embedder="word2vec"), "embedder", "got 'word2vec'"),
    "a roster that is none": (_settings(roster="study.toml"), "roster", "roster "),
    "the auditor's certificates": (_settings(identity="../auditor/identity"), "identity", "audit"),
    "a sample without an answer": (_sample(answer=""), "pool", "pool.jsonl:193: answer is empty"),
    "an LLM that is not there": (_settings(llm="none"), "model.folder", "model reference 'none'"),
    "an LLM without weights": (_no_weights, "model.folder", "has no model.safetensors"),
    "paths longer than the LLM": (
        _study(paths={"max_new_tokens": 600}),
        "plan.sizes",
        "takes 511 tokens with the prompt",
    ),
    "a sample that is too long": (
        _sample(question="1+1 " * 300),
        "pool.length",
        "pool.jsonl:193: sample 'new' is too long for the LLM",
    ),
    "adapters on layers that are none": (
        _study(uplink={"adapter_targets": ["c_attn"]}),
        "plan.uplink",
        "no linear layer is called c_attn",
    ),
}


def test_a_coordinator_as_it_should_be(checked_run: RunLayout) -> None:
    found = findings_of(ROLE, checked_run.coordinator)
    assert {name: level for name, level in levels(found).items() if level != "ok"} == {
        "model.server": "skipped",
        "probe.styles": "skipped",
        "probe.forms": "skipped",
    }
    assert "can be proposed: 4 clusters over 192 samples" in told(found, "plan")


@pytest.mark.parametrize(("spoil", "check", "said"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_told_by_its_check(
    checked_run: RunLayout, spoil: Spoil, check: str, said: str
) -> None:
    spoil(checked_run)
    before = tree(checked_run.root.parent)
    found = findings_of(ROLE, checked_run.coordinator)
    by_name = levels(found)
    assert by_name[check] == "fault"
    assert said in told(found, check)
    others = {name for name, one in by_name.items() if one == "fault"} - {check}
    # Both are about one number.
    assert others <= ({"pool.length"} if check == "plan.sizes" else set())
    assert tree(checked_run.root.parent) == before


def test_the_pool_is_asked_in_the_study_form_and_nothing_is_written(checked_run: RunLayout) -> None:
    before = tree(checked_run.root.parent)
    found = findings_of(ROLE, checked_run.coordinator, quick=False)
    forms = next(one for one in found if one.check == "probe.forms")
    assert forms.facts["questions"] == 6
    # Random weights answer nothing.
    assert forms.level == "warning"
    assert "In none of them is it right more often than by guessing" in forms.message
    assert tree(checked_run.root.parent) == before


def test_a_served_llm_is_tried_and_nothing_of_it_is_kept(
    checked_run: RunLayout, served_folder: Path
) -> None:
    with serving(CompletionsServer(loaded(served_folder))) as server:
        llm = {"endpoint": server.url, "model": MODEL, "tokenizer": str(served_folder)}
        _settings(llm={**llm, "model": "another"})(checked_run)
        wrong = findings_of(ROLE, checked_run.coordinator)
        assert "serves served-model, and llm.model is 'another'" in told(wrong, "model.server")
        assert levels(wrong)["model.load"] == "skipped"
        _settings(llm=llm)(checked_run)
        before = tree(checked_run.root.parent)
        found = findings_of(ROLE, checked_run.coordinator, quick=False, questions=2)
        by_name = levels(found)
        assert "fault" not in by_name.values(), found
        assert by_name["model.server"] == by_name["model.load"] == "ok"
        assert by_name["model.folder"] == by_name["model.place"] == "skipped"
        assert MODEL in told(found, "model.server")
        assert not [path for path, _ in server.requests if "lora" in path]
    assert levels(findings_of(ROLE, checked_run.coordinator))["model.server"] == "fault"
    assert tree(checked_run.root.parent) == before


def test_study_and_pool_are_those_of_the_settings(checked_run: RunLayout) -> None:
    settings = checked_run.coordinator.settings
    with pytest.raises(ParameterError, match="--pool: the coordinator's settings name"):
        ROLE.checks(settings, Request(pool=settings))


def test_the_marks_are_keys_of_this_role_that_its_file_must_have() -> None:
    fields = ServerSettings.model_fields
    assert all(fields[mark].is_required() for mark in ROLE.marks)
