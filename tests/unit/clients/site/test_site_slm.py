"""A site's SLM: allowed by plan and policy, signed for, and the same to the end of the study."""

from __future__ import annotations

from pathlib import Path

import pytest
from protocol_world import make_plan
from site_doubles import site_policy, site_settings
from slm_files import write_slm, write_weights

from lada_clients.site.gates.slm import (
    HASHES_FILE,
    ModelChanged,
    SiteSlm,
    describe_slm,
    file_hashes,
)
from lada_clients.site.settings import SlmSettings
from lada_protocol.settings import parse_settings
from lada_secure.errors import ParameterError
from lada_secure.models.identity import SlmPlan

FINE = make_plan()


def site_slm(folder: Path, *, licence: str = "MIT") -> SiteSlm:
    settings = site_settings(folder, model=SlmSettings(slm="slm", licence=licence))
    write_slm(settings.slm_folder)
    return SiteSlm(settings=settings, hashes=file_hashes(settings))


@pytest.mark.parametrize(
    ("slm", "folder"),
    [
        ("smollm2-135m", "cache/smollm2-135m"),
        ("models/gemma", "here/models/gemma"),
        ("./gemma", "here/gemma"),
        ("../shared/gemma", "shared/gemma"),
        ("/elsewhere/gemma", "/elsewhere/gemma"),
    ],
)
def test_a_name_lies_in_the_cache_and_a_path_beside_the_settings(
    tmp_path: Path, slm: str, folder: str
) -> None:
    table = SlmSettings(slm=slm).beside(tmp_path / "here")
    found = site_settings(tmp_path, model=table).slm_folder
    assert found.resolve() == (tmp_path / folder).resolve()


@pytest.mark.parametrize("slm", ["$HOME/gemma", "~nobody-of-that-name/gemma"])
def test_a_path_that_nothing_expands_is_refused(tmp_path: Path, slm: str) -> None:
    with pytest.raises(ParameterError, match="slm: "):
        SlmSettings(slm=slm).beside(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "the key 'slm' is missing"),
        (b'slm = ""', "slm: "),
        (b'slm = "a"\nlicense = "MIT"', "unknown key 'license'; known keys are device, "),
        (b'slm = "a"\nlicence = "' + b"x" * 201 + b'"', "licence: "),
    ],
)
def test_a_wrong_table_is_refused_by_name(text: bytes, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        parse_settings(text, SlmSettings, where="site.toml")


def test_a_model_must_fit_the_plan_and_the_policy(tmp_path: Path) -> None:
    slm = site_slm(tmp_path)
    assert slm.allowed(FINE, site_policy()) == slm.identity()
    plan = make_plan(slm=SlmPlan(families=("GPT2LMHeadModel",)))
    policy = site_policy(model=SlmPlan(max_parameters=10, licences=("Apache-2.0",)))
    with pytest.raises(ParameterError) as caught:
        slm.allowed(plan, policy)
    said = str(caught.value)
    assert "its architecture is LlamaForCausalLM, allowed are GPT2LMHeadModel (by the plan)" in said
    assert "it has 36 parameters, allowed are 10 (by the policy)" in said
    assert "its licence is 'MIT', allowed are Apache-2.0 (by the policy)" in said
    assert "nothing was promised or spent" in said


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("model.safetensors", "weights_sha256 was "),
        ("tokenizer.json", "tokenizer_sha256 was "),
        ("chat_template.jinja", "template_sha256 was "),
    ],
)
def test_another_file_under_the_same_name_is_told_by_its_hash(
    tmp_path: Path, name: str, changed: str
) -> None:
    slm = site_slm(tmp_path)
    signed, path = slm.identity(), slm.folder / name
    before = path.read_bytes() if path.exists() else None
    slm.check(signed)
    if name == "model.safetensors":
        write_weights(path, b"WEIGHTS")
    else:
        path.write_text('{"another": 1}')
    with pytest.raises(ModelChanged) as caught:
        slm.check(signed)
    assert changed in str(caught.value)
    assert str(caught.value).count("sha256 was ") == 1
    assert "Nothing more was reserved or sent" in str(caught.value)
    if before is not None:
        path.write_bytes(before)
        slm.check(signed)


def test_what_the_site_says_of_the_model_is_signed_too(tmp_path: Path) -> None:
    signed = site_slm(tmp_path).identity()
    with pytest.raises(ModelChanged, match="licence was MIT and is empty"):
        site_slm(tmp_path, licence="").check(signed)


def test_a_model_that_is_gone_is_named(tmp_path: Path) -> None:
    slm = site_slm(tmp_path)
    signed = slm.identity()
    (slm.folder / "model.safetensors").unlink()
    with pytest.raises(ParameterError, match=r"expected model\.safetensors"):
        slm.check(signed)


def test_hashes_are_kept_in_the_state_folder_once_there_is_one(tmp_path: Path) -> None:
    slm = site_slm(tmp_path)
    slm.identity()
    assert not slm.settings.state_dir.exists()
    slm.settings.state_dir.mkdir()
    hashes = file_hashes(slm.settings)
    hashes._now = lambda: 4e9
    SiteSlm(settings=slm.settings, hashes=hashes).identity()
    assert (slm.settings.state_dir / HASHES_FILE).is_file()


def test_a_person_reads_what_the_acceptance_would_say(tmp_path: Path) -> None:
    slm = site_slm(tmp_path).identity()
    said = " ".join(describe_slm(slm))
    assert "LlamaForCausalLM, 36 parameters, licence MIT" in said
    assert slm.weights_sha256[:12] in said
    assert "never have been trained on the records" in said
