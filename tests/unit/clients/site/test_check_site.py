"""A site's part of `lada check`: every check fine, and what it says of each mistake."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from architecture_doubles import family_folder
from checked_run import (
    SITE,
    change_json,
    change_toml,
    change_weights,
    findings_of,
    levels,
    slm_folder,
    told,
    tree,
)

from lada_clients.site.check.role import ROLE
from lada_clients.site.gates.slm import HASHES_FILE
from lada_clients.site.settings import SiteSettings
from lada_lab.mock.layout import RunLayout
from lada_lab.worlds.character_models import character_tokenizer
from lada_secure.canonical import canonical_json
from lada_secure.check.running import Request
from lada_secure.models.fingerprints import FileHashes
from lada_secure.storage.state_folder import OWNER_FILE

Spoil = Callable[[RunLayout], None]


def _settings(**changes: object) -> Spoil:
    return lambda layout: change_toml(layout.site(SITE).settings, **changes)


def _policy(**changes: object) -> Spoil:
    return lambda layout: change_toml(layout.site(SITE).root / "policy.toml", **changes)


def _record(**changes: object) -> Spoil:
    def add(layout: RunLayout) -> None:
        path = layout.site(SITE).root / "records.jsonl"
        row = {
            "record_id": "new",
            "unit": "new",
            "question": "1+1",
            "choices": [],
            "answer": "2",
            "rationale": None,
            **changes,
        }
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    return add


def _held_out_like_a_record(layout: RunLayout) -> None:
    folder = layout.site(SITE).root
    first = (folder / "records.jsonl").read_text().splitlines()[0]
    with (folder / "held-out.jsonl").open("a", encoding="utf-8") as file:
        file.write(first + "\n")


def _cut_short(layout: RunLayout) -> None:
    path = slm_folder(layout) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _remote_code(layout: RunLayout) -> None:
    change_json(
        slm_folder(layout) / "config.json",
        lambda content: content.update(auto_map={"AutoModel": "code.Model"}),
    )


def _state_of_another(layout: RunLayout) -> None:
    owner = {"party": "site-b", "role": "site", "version": 1}
    (layout.site(SITE).state / OWNER_FILE).write_bytes(canonical_json(owner))


def _no_chat_template(layout: RunLayout) -> None:
    (slm_folder(layout) / "chat_template.jinja").unlink()
    _settings(model={"style": "chat"})(layout)


def _tokenizer_of_few_characters(layout: RunLayout) -> None:
    character_tokenizer().save_pretrained(slm_folder(layout))


def _endless(tensors: dict[str, object]) -> None:
    tensors["lm_head.weight"] *= 1e38  # type: ignore[operator]


def _one_is_gone(tensors: dict[str, object]) -> None:
    del tensors["model.layers.0.mlp.up_proj.weight"]


MISTAKES: dict[str, tuple[Spoil, str, str, str]] = {
    "an unknown key": (_settings(speed="fast"), "settings", "fault", "unknown key 'speed'"),
    "a policy that is not there": (_settings(policy="no.toml"), "policy", "fault", "cannot read"),
    "a state folder of another party": (_state_of_another, "state", "fault", "of site site-b"),
    "a state folder where a file stands": (
        _settings(state_dir="policy.toml/state"),
        "state",
        "fault",
        "is no folder; name another place",
    ),
    "another roster than the pinned one": (
        _policy(roster_sha256="ab" * 32),
        "roster",
        "fault",
        "roster_sha256 pins abab",
    ),
    "certificates of another site": (
        _settings(identity="../site-b/identity"),
        "identity",
        "fault",
        "site-b",
    ),
    "an identity folder that is not there": (
        _settings(identity="nowhere"),
        "identity",
        "fault",
        "cannot be read",
    ),
    "a record without an answer": (_record(answer=""), "records", "fault", "answer is empty"),
    "records that are not there": (_settings(records="no.jsonl"), "records", "fault", "cannot"),
    "a held-out record that is trained on": (
        _held_out_like_a_record,
        "records",
        "warning",
        "share a record_id with the training records",
    ),
    "a model that is not there": (
        _settings(model={"slm": "no-such-model"}),
        "model.folder",
        "fault",
        "there is no such folder",
    ),
    "weights cut short": (_cut_short, "model.folder", "fault", "is cut short"),
    "code of the model's own": (_remote_code, "model.folder", "fault", "auto_map"),
    "a family that the policy forbids": (
        _policy(model={"families": ["GPT2LMHeadModel"]}),
        "model.identity",
        "fault",
        "its architecture is LlamaForCausalLM, allowed are GPT2LMHeadModel (by the policy)",
    ),
    "a device that is not there": (
        _settings(model={"device": "cuda:9"}),
        "model.place",
        "fault",
        "CUDA devices",
    ),
    "a tensor that is missing": (
        change_weights(_one_is_gone),
        "model.load",
        "fault",
        "1 tensors are missing",
    ),
    "a style without a template": (_no_chat_template, "model.load", "fault", "no chat template"),
    "a tokenizer that knows no letter": (
        _tokenizer_of_few_characters,
        "model.tokenizer",
        "warning",
        "of the tokens of the public questions are unknown",
    ),
    "weights whose scores are endless": (
        change_weights(_endless),
        "model.answers",
        "fault",
        "its weights are broken",
    ),
    "a record that is too long": (
        _record(question="1+1 " * 300),
        "records.length",
        "fault",
        "records.jsonl:361: too long for the model: needs ",
    ),
}


def test_a_site_as_it_should_be(checked_run: RunLayout) -> None:
    found = findings_of(ROLE, checked_run.site(SITE))
    assert {name: level for name, level in levels(found).items() if level != "ok"} == {
        "coordinator": "skipped",
        "pool": "skipped",
        "plan.read": "skipped",
        "plan.policy": "skipped",
        "plan.sizes": "skipped",
        "probe.styles": "skipped",
        "probe.forms": "skipped",
    }
    assert "LlamaForCausalLM" in told(found, "model.identity")
    assert 'style "plain", 1 token(s) around a question: <s>QUESTION' in told(found, "model.style")
    assert "fused trains this model" in told(found, "model.engine")
    assert "on q_proj, v_proj of 2 layers" in told(found, "model.adapters")


@pytest.mark.parametrize(("spoil", "check", "level", "said"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_told_by_its_check_and_what_does_not_rest_on_it_is_looked_at(
    checked_run: RunLayout, spoil: Spoil, check: str, level: str, said: str
) -> None:
    spoil(checked_run)
    before = tree(checked_run.root.parent)
    found = findings_of(ROLE, checked_run.site(SITE))
    by_name = levels(found)
    assert by_name[check] == level
    assert said in told(found, check)
    assert {name for name, one in by_name.items() if one in ("warning", "fault")} == {check}
    if check not in ("settings", "model.folder", "model.place", "model.load"):
        assert by_name["model.style"] == "ok"
    if level == "fault":
        waiting = {one.name for one in ROLE.checks(Path(), Request()) if check in one.needs}
        assert {by_name[name] for name in waiting} <= {"skipped"}
    assert tree(checked_run.root.parent) == before


def test_what_is_too_long_is_a_warning_where_the_policy_cuts(checked_run: RunLayout) -> None:
    _record(question="1+1 " * 300)(checked_run)
    _policy(records={"too_long": "cut"})(checked_run)
    found = findings_of(ROLE, checked_run.site(SITE))
    assert levels(found)["records.length"] == "warning"
    assert "1 text(s) are too long" in told(found, "records.length")


def test_a_model_without_usual_layers_needs_a_plan_that_names_some(checked_run: RunLayout) -> None:
    shutil.rmtree(slm_folder(checked_run))
    family_folder("Mamba", slm_folder(checked_run))
    found = findings_of(ROLE, checked_run.site(SITE))
    assert (levels(found)["model.adapters"], levels(found)["model.engine"]) == (
        "warning",
        "skipped",
    )
    assert "adapter_targets" in told(found, "model.adapters")


def test_hashes_that_a_run_keeps_are_used_and_none_are_added(checked_run: RunLayout) -> None:
    folder = checked_run.site(SITE)
    own = told(findings_of(ROLE, folder), "model.identity")
    kept = folder.state / HASHES_FILE
    weights = slm_folder(checked_run) / "model.safetensors"
    # As if the file had been there for a while; a hash that is not its own shows who was asked.
    FileHashes(kept, now=lambda: time.time() + 60.0).sha256(weights)
    change_json(kept, lambda found: found["files"].update(dict.fromkeys(found["files"], "0" * 64)))
    before = tree(folder.root)
    assert told(findings_of(ROLE, folder), "model.identity") != own
    assert tree(folder.root) == before


def test_public_questions_of_a_file_are_asked(checked_run: RunLayout) -> None:
    pool = checked_run.coordinator.root / "pool.jsonl"
    found = findings_of(ROLE, checked_run.site(SITE), quick=False, pool=pool)
    assert levels(found)["pool"] == "ok"
    facts = next(one.facts for one in found if one.check == "probe.forms")
    assert facts["questions"] == 6
    assert set(facts["forms"]) == {"cloze", "listed", "reasoned"}  # type: ignore[arg-type]
    styles = next(one.facts for one in found if one.check == "probe.styles")
    assert set(styles["styles"]) == {"plain", "chat"}  # type: ignore[arg-type]
    pool.write_text("{}\n")
    spoiled = levels(findings_of(ROLE, checked_run.site(SITE), quick=False, pool=pool))
    assert (spoiled["pool"], spoiled["probe.forms"]) == ("fault", "skipped")


def test_the_marks_are_keys_of_this_role_that_its_file_must_have() -> None:
    fields = SiteSettings.model_fields
    assert all(fields[mark].is_required() for mark in ROLE.marks)
