"""`docs/results/models.md` says what works with which family; here every row is made again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from architecture_doubles import FAMILIES, family_model, family_tokenizer, small_lm
from architecture_table import BEGIN, COLUMNS, END, PAGE, family_row, line
from trainer_doubles import small_model

from lada_secure.dpsgd.engine_fused import FusedEngine
from lada_secure.dpsgd.engine_probe import probe_engine
from lada_secure.errors import ParameterError
from lada_secure.models.adapters import AdapterSettings, attach_adapters
from lada_secure.models.calling_settings import Calling


def page_rows() -> list[str]:
    table = PAGE.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0]
    return [one for one in table.splitlines() if one.startswith("|")]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_page_says_what_happens_with_a_family(family: str, tmp_path: Path) -> None:
    row = family_row(family, tmp_path / "model")
    assert line(row) in page_rows(), "run: python tests/doubles/architecture_table.py"


def test_the_page_has_every_family_once_and_no_other() -> None:
    header, _, *rows = page_rows()
    assert header == line({name: name for name in COLUMNS})
    assert [one.split(" | ")[0].removeprefix("| ") for one in rows] == list(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_context_is_the_models_own_up_to_the_setting(family: str) -> None:
    own = 4096 if family in ("BLOOM", "Mamba") else 512
    tokenizer = family_tokenizer(family)
    assert small_lm(tokenizer, family=family).max_tokens == own
    assert small_lm(tokenizer, family=family, calling=Calling(max_tokens=64)).max_tokens == 64


class TestEngineProbe:
    @pytest.mark.parametrize("engine", ["fused", "opacus", "auto"])
    def test_a_layer_that_sees_tokens_out_of_their_rows_is_refused(self, engine: str) -> None:
        lm = attach_adapters(
            small_lm(family_tokenizer("OPT"), family="OPT"),
            AdapterSettings(rank=2, target_modules=("q_proj", "fc1")),
        )
        with pytest.raises(ParameterError, match=r"cannot train this model: .*adapt other layers"):
            probe_engine(lm, engine)  # type: ignore[arg-type]

    def test_an_engine_with_other_gradients_is_refused_by_the_weights_name(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lm = attach_adapters(small_model(), AdapterSettings(rank=2))
        probe_engine(lm, "fused")
        right = FusedEngine.add

        def halved(self: FusedEngine, *factors: Any) -> None:
            *matrices, scaling = factors
            right(self, *matrices, 0.5 * scaling)

        monkeypatch.setattr(FusedEngine, "add", halved)
        with pytest.raises(ParameterError, match=r"another gradient of .*lora_B"):
            probe_engine(lm, "fused")

    def test_nothing_of_the_probe_stays_on_the_model(self) -> None:
        lm = attach_adapters(small_model(), AdapterSettings(rank=2))
        before = {name: one.clone() for name, one in lm.model.named_parameters()}
        probe_engine(lm, "auto")
        for name, one in lm.model.named_parameters():
            assert torch.equal(one, before[name])
            assert one.grad is None


def test_models_of_one_seed_are_the_same() -> None:
    one, other = (family_model("Llama", 400, seed=3) for _ in range(2))
    assert torch.equal(one.lm_head.weight, other.lm_head.weight)
