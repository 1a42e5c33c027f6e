"""Settings as `lada init` writes them: every key of the models and no other, and true defaults."""

from __future__ import annotations

import importlib
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest
import tomli_w
from pydantic import BaseModel, TypeAdapter
from pydantic_core import PydanticUndefined

from lada_clients.auditor.initial_settings import TEMPLATES as AUDITOR
from lada_clients.setup.answers import party_answers, policy_answers, study_answers
from lada_clients.site.initial_settings import TEMPLATES as SITE
from lada_clients.site.settings import SitePolicy
from lada_protocol.party_templates import GROUP, NO_ROSTER, PIN, toml_value
from lada_secure.errors import LocalProtocolError, ParameterError
from lada_server.initial_settings import TEMPLATES as COORDINATOR
from lada_server.settings import StudySettings

REPOSITORY = Path(__file__).parents[4]
ROLES = (SITE, AUDITOR, COORDINATOR)
TEMPLATES = {one.file: one for role in ROLES for one in role.files}
ANSWERS = {
    **party_answers("hospital-a", None),
    **policy_answers(),
    **study_answers(people=500, answer_form="cloze"),
    "coordinator": "hub.example.org:7443",
    "listen": "0.0.0.0:7443",
    "records": "/data/records.jsonl",
    "held_out": None,
    "pool": "/data/pool.jsonl",
    "cache_dir": "~/.cache/lada-secure",
    "threads": 2,
    "slm": "/models/slm",
    "llm": "/models/llm",
    "population": "hospital-a.people",
    "epsilon_cap_per_study": 4.0,
    "epsilon_cap_total": 8.0,
    "epsilon_cap": 4.0,
    "approval": "policy",
    "study_id": "study-1",
    "title": "A study",
    "rounds": 2,
    "unit": "person",
    "embedder": "minilm",
}
# Tables that a template names and leaves to docs/settings.md.
LEFT_OUT = {"transport", "uplink", "guide"}
# Examples of what has no default, instead of defaults.
EXAMPLES = {
    "held_out", "passphrase_file", "template", "quantization", "device_map", "database", "monitor",
    "adapter_core", "sample_value", "fallback", "least_llm_right", "approval_days",
}  # fmt: skip


def with_defaults_shown(text: str) -> dict[str, object]:
    """The file with every commented key and table in it."""
    return tomllib.loads(re.sub(r"(?m)^# (\[[a-z_]+\]|[a-z_0-9]+ = .+)$", r"\1", text))


def table_of(annotation: object) -> type[BaseModel] | None:
    kinds = getattr(annotation, "__args__", (annotation,))
    found = [one for one in kinds if isinstance(one, type) and issubclass(one, BaseModel)]
    return found[0] if found else None


def compare(table: Mapping[str, object], model: type[BaseModel], where: str) -> None:
    assert set(table) | LEFT_OUT >= set(model.model_fields) >= set(table), where
    for key, field in model.model_fields.items():
        inner = table_of(field.annotation)
        if inner is not None and key not in LEFT_OUT and isinstance(table[key], dict):
            compare(table[key], inner, f"{where}.{key}")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_has_every_key_of_its_model_and_no_other(name: str) -> None:
    template = TEMPLATES[name]
    compare(with_defaults_shown(template.filled(ANSWERS).decode()), template.model, name)


def commented(text: str) -> dict[str, dict[str, object]]:
    """What a file's comments say of defaults, by table."""
    shown = dict(with_defaults_shown(text).items())
    live = tomllib.loads(text)
    return {
        "": {key: one for key, one in shown.items() if key not in live and one != {}},
        **{
            table: {key: value for key, value in one.items() if key not in live.get(table, {})}
            for table, one in shown.items()
            if isinstance(one, dict)
        },
    }


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_comments_show_is_what_holds_without_them(name: str) -> None:
    template = TEMPLATES[name]
    text = template.filled(ANSWERS).decode()
    compared = 0
    for table, shown in commented(text).items():
        model = template.model
        if table:
            model = table_of(template.model.model_fields[table].annotation)  # type: ignore[assignment]
        for key, value in shown.items():
            if key in EXAMPLES or isinstance(value, dict):
                continue
            field = model.model_fields[key]
            assert field.default is not PydanticUndefined, key
            read = TypeAdapter(field.annotation).validate_python(value)
            assert read == field.default, f"{name}: {table}.{key}"
            compared += 1
    assert compared >= 3


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_live_key_has_a_comment_above_it_or_stands_with_one(name: str) -> None:
    lines = TEMPLATES[name].text.splitlines()
    bare = [
        line
        for number, line in enumerate(lines)
        if re.match(r"[a-z_0-9]+ = ", line) and not lines[number - 1].strip()
    ]
    assert bare == []
    assert max(map(len, lines)) <= 100


def test_the_proposed_study_keeps_to_the_recommended_policy() -> None:
    policy = SitePolicy.model_validate(
        tomllib.loads(TEMPLATES["policy.toml"].filled(ANSWERS).decode())
    )
    study = StudySettings.model_validate(
        tomllib.loads(TEMPLATES["study.toml"].filled(ANSWERS).decode())
    )
    assert study.privacy.epsilon_cap <= policy.epsilon_cap_per_study
    assert study.privacy.target_delta <= policy.target_delta
    assert study.privacy.max_records_per_unit <= policy.max_records_per_unit
    assert study.min_cohort >= policy.min_cohort
    assert policy.roster_sha256 == NO_ROSTER


def test_two_rounds_spend_what_the_comment_says() -> None:
    from lada_secure.method.mechanisms import planned_epsilon
    from lada_secure.method.plan import MethodPlan

    text = TEMPLATES["study.toml"].filled(ANSWERS).decode()
    study = StudySettings.model_validate(tomllib.loads(text))
    plan = MethodPlan(
        **study.model_dump(include=set(MethodPlan.model_fields), exclude_none=True),
        pool_sha256="0" * 64,
        pool_size=100,
    )
    assert f"two rounds spend {planned_epsilon(plan):.1f}" in text
    assert planned_epsilon(plan) < study.privacy.epsilon_cap


@pytest.mark.parametrize(
    "text",
    ['a "quoted" name', "C:\\models", "zwei\nZeilen", "\x7f and \t", "Größe 🏥", "${party}", "# x"],
)
def test_any_text_comes_back_as_it_was_said(text: str) -> None:
    assert tomllib.loads(f"key = {toml_value(text)}") == {"key": text}
    raw = TEMPLATES["study.toml"].filled({**ANSWERS, "title": text})
    assert tomllib.loads(raw.decode())["title"] == text
    assert tomllib.loads(tomli_w.dumps({"key": text})) == {"key": text}


def test_an_answer_that_settings_do_not_allow_names_its_key() -> None:
    with pytest.raises(ParameterError, match=r"policy\.toml: approval: "):
        TEMPLATES["policy.toml"].filled({**ANSWERS, "approval": "maybe"})
    with pytest.raises(LocalProtocolError, match="asks for 'held_out'"):
        TEMPLATES["site.toml"].filled({})


def test_the_pin_is_found_once_where_a_role_pins_a_roster() -> None:
    for role in ROLES:
        for template in role.files:
            text = template.filled(ANSWERS).decode()
            assert len(PIN.findall(text)) == (template is role.pins)


def test_every_role_is_found_by_its_entry_point() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    found = {}
    for role, reference in project["entry-points"][GROUP].items():
        module, _, name = reference.partition(":")
        found[role] = getattr(importlib.import_module(module), name)
    assert found == {str(one.role): one for one in ROLES}
    assert project["entry-points"]["lada.commands"]["init"] == "lada_clients.setup.commands:app"
