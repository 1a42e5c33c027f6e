"""A coordinator's LLM that will not fit is refused before it is loaded or a plan proposed."""

from __future__ import annotations

from pathlib import Path

import pytest
from architecture_doubles import family_folder
from site_doubles import POOL, site_plan

from lada_secure.errors import ParameterError
from lada_secure.models import memory
from lada_secure.models.placement import Placement
from lada_server.study.local_llm import LocalLlm


def never(*_: object, **__: object) -> None:
    raise AssertionError("weights were read")


def test_an_llm_that_does_not_fit_is_refused_with_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = family_folder("Llama", tmp_path / "llm")
    llm = LocalLlm(str(folder), cache_dir=tmp_path, threads=1)
    monkeypatch.setattr("lada_secure.models.loading.AutoModelForCausalLM.from_pretrained", never)
    llm.check_memory(site_plan(), POOL)
    monkeypatch.setattr(memory, "free_bytes", lambda _: 1000)
    with pytest.raises(ParameterError, match=r"the LLM does not fit: .* nothing was proposed"):
        llm.check_memory(site_plan(), POOL)


def test_a_placement_that_this_machine_has_not_is_refused_as_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = family_folder("Llama", tmp_path / "llm")
    packed = Placement(device="cpu", quantization="8bit")
    llm = LocalLlm(str(folder), cache_dir=tmp_path, threads=1, placement=packed)
    monkeypatch.setattr("lada_secure.models.loading.AutoModelForCausalLM.from_pretrained", never)
    with pytest.raises(ParameterError, match=r"8bit weights .* CUDA devices alone"):
        llm.check_memory(site_plan(), POOL)
