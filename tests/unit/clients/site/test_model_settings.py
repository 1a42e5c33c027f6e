"""The table [model]: how a party's own model is called reaches whoever loads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from architecture_doubles import family_folder
from method_doubles import ledger
from site_doubles import POOL, site_plan, site_settings

from lada_clients.site.learner import SiteLearner
from lada_clients.site.memory import SiteMemory
from lada_clients.site.settings import SiteSettings, SlmSettings
from lada_protocol.party_files import ModelSettings
from lada_protocol.settings import Settings, parse_settings
from lada_secure.allocation.cells import fit_clusters
from lada_secure.errors import ParameterError
from lada_secure.models.calling_settings import Calling
from lada_secure.models.embedding import embedder
from lada_secure.models.placement import Placement
from lada_server.settings import ServerSettings
from lada_server.study.local_llm import LocalLlm


class OneTable(Settings):
    model: ModelSettings = ModelSettings()


def parsed(text: str) -> ModelSettings:
    return parse_settings(text.encode(), OneTable, where="site.toml").beside(Path("/base")).model


def test_the_default_is_plain_with_4096_tokens() -> None:
    assert parsed("").calling == Calling(style="plain", template=None, max_tokens=4096)
    assert SlmSettings(slm="any").calling == Calling()
    assert SiteSettings.model_fields["model"].is_required()
    assert ServerSettings.model_fields["model"].default == ModelSettings()


def test_a_template_stands_beside_the_settings_file() -> None:
    found = parsed('[model]\ntemplate = "ours.jinja"\nmax_tokens = 2048')
    assert found.calling == Calling(template=Path("/base/ours.jinja"), max_tokens=2048)
    assert parsed('[model]\nstyle = "chat"').calling.style == "chat"
    with pytest.raises(ParameterError, match=r"variables such as \$HOME"):
        parsed('[model]\ntemplate = "$HOME/ours.jinja"')


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ('style = "instruct"', "model.style: .*'plain' or 'chat'"),
        ('style = "chat"\ntemplate = "ours.jinja"', "name one of them"),
        ("max_tokens = 8", "model.max_tokens: .*16"),
        ('prompt = "x"', "unknown key 'model.prompt'"),
        ('device = "abacus"', "model.device: "),
        ('device = "cuda:1\\n"', "model.device: "),
        ('dtype = "float16"', "model.dtype: .*'float32' or 'bfloat16'"),
        ('quantization = "2bit"', "model.quantization: "),
        ('device_map = "balanced"', "model.device_map: "),
        ('device_map = "auto"\ndevice = "cpu"', "leave one of them out"),
    ],
)
def test_a_wrong_key_is_refused_by_name(table: str, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        parsed(f"[model]\n{table}")


def test_the_default_place_is_the_first_device_in_float32() -> None:
    assert parsed("").placement == Placement()
    table = 'device = "cuda:1"\ndtype = "bfloat16"\nquantization = "4bit"'
    found = parsed(f"[model]\n{table}\ngradient_checkpointing = true").placement
    assert found == Placement(
        device="cuda:1", dtype="bfloat16", quantization="4bit", gradient_checkpointing=True
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('device = "cpu"', "the key 'device' is now device in the table"),
        ('precision = "bfloat16"', "the key 'precision' is now dtype in the table"),
        ('[model]\nprecision = "bfloat16"', "the key 'model.precision' is now dtype in the table"),
    ],
)
def test_a_key_of_an_earlier_version_names_the_new_one(text: str, told: str) -> None:
    with pytest.raises(ParameterError, match=told):
        parse_settings(text.encode(), SiteSettings, where="site.toml")


def test_the_hash_of_a_calling_changes_with_what_the_template_says(tmp_path: Path) -> None:
    file = tmp_path / "ours.jinja"
    file.write_text("{{ question }}")
    one = Calling(template=file).sha256
    file.write_text("Q: {{ question }}")
    assert len({one, Calling(template=file).sha256, Calling().sha256}) == 3
    assert Calling(max_tokens=64).sha256 != Calling().sha256


@pytest.fixture(scope="module")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder without a chat template."""
    folder = family_folder("Qwen2", tmp_path_factory.mktemp("models") / "base")
    (folder / "chat_template.jinja").unlink()
    return folder


def test_a_site_that_calls_a_base_model_in_chat_style_is_told_at_its_start(
    base_model: Path, tmp_path: Path
) -> None:
    plan = site_plan()
    settings = site_settings(tmp_path, model=SlmSettings(slm=str(base_model), style="chat"))
    with pytest.raises(ParameterError, match="has no chat template"):
        SiteLearner.load(
            plan=plan,
            settings=settings,
            public=(POOL, cast(Any, None)),
            units=(),
            held_out=(),
            book=ledger(plan),
            memory=SiteMemory(folder=tmp_path / "memory"),
        )


def test_site_and_coordinator_load_in_the_type_of_their_settings(
    base_model: Path, tmp_path: Path
) -> None:
    plan = site_plan()
    table = SlmSettings(slm=str(base_model), device="cpu", dtype="bfloat16")
    questions = embedder(plan.embedder).embed([one.question for one in POOL])
    wanted = Placement(device="cpu", dtype="bfloat16")
    learner = SiteLearner.load(
        plan=plan,
        settings=site_settings(tmp_path, model=table),
        public=(POOL, fit_clusters(questions, 2, 0)),
        units=(),
        held_out=(),
        book=ledger(plan),
        memory=SiteMemory(folder=tmp_path / "memory"),
    )
    llm = LocalLlm(str(base_model), cache_dir=tmp_path, threads=1, placement=table.placement)
    other = LocalLlm(str(base_model), cache_dir=tmp_path, threads=1)
    for lm in (learner.context.lm, llm.model):
        assert lm.placement == wanted
        assert lm.model.get_input_embeddings().weight.dtype == torch.bfloat16
    assert llm.reference != other.reference


def test_a_coordinator_calls_its_llm_as_its_settings_say(base_model: Path, tmp_path: Path) -> None:
    def llm(calling: Calling | None) -> LocalLlm:
        return LocalLlm(str(base_model), cache_dir=tmp_path, threads=1, calling=calling)

    assert llm(None).model.style.name == "plain"
    assert llm(Calling(max_tokens=64)).model.max_tokens == 64
    with pytest.raises(ParameterError, match="has no chat template"):
        assert llm(Calling(style="chat")).model
