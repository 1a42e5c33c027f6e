"""Loading models from folders, whatever is wrong with them."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BloomConfig, BloomForCausalLM

from lada_lab.worlds.character_models import character_tokenizer
from lada_lab.worlds.federation import build_federation
from lada_lab.worlds.tiny_models import build_tiny_model
from lada_secure.errors import ParameterError
from lada_secure.models.evaluation import greedy_rationales
from lada_secure.models.loading import (
    LanguageModel,
    check_architecture,
    load_folder,
    load_language_model,
    wrap_model,
)

TINY = build_federation("tiny", sites=3, seed=0)


def test_a_path_ends_with_the_end_token_and_a_prompt_does_not(tiny_slm: LanguageModel) -> None:
    assert tiny_slm.encode_rationale("f8")[-1] == tiny_slm.end_token
    assert tiny_slm.encode_rationale("f8")[:-1] == tiny_slm.encode_prompt("f8")
    assert tiny_slm.decode(tiny_slm.encode_rationale("f8\n8")) == "f8\n8"


def test_overlong_texts_are_cut_and_empty_ones_are_the_end_token(tiny_slm: LanguageModel) -> None:
    end = tiny_slm.end_token
    assert tiny_slm.encode_prompt("") == tiny_slm.encode_rationale("") == [end]
    (four,), (five,) = tiny_slm.tokens_of("4"), tiny_slm.tokens_of("5")
    assert tiny_slm.encode_prompt("4" * 99 + "5") == [four] * 62 + [five]
    assert tiny_slm.encode_rationale("5" + "4" * 99) == [five] + [four] * 61 + [end]
    assert tiny_slm.token_counts(["", "44", "\ud8004"]) == [0, 2, 2]


def test_a_text_that_spells_a_control_token_is_a_text(tiny_slm: LanguageModel) -> None:
    assert tiny_slm.tokenizer.eos_token == "<end>"
    assert tiny_slm.end_token not in tiny_slm.tokens_of("4<end>5")
    assert tiny_slm.encode_rationale("4<end>5").count(tiny_slm.end_token) == 1
    assert tiny_slm.token_counts(["4<end>5"]) == [len(tiny_slm.tokens_of("4<end>5"))]


def copy_of(lm: LanguageModel, folder: Path) -> Path:
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return folder


def test_missing_and_reshaped_tensors_are_refused_by_name(
    tiny_slm: LanguageModel, tmp_path: Path
) -> None:
    folder = copy_of(tiny_slm, tmp_path / "model")
    weights = folder / "model.safetensors"
    whole = load_file(weights)
    lost = {one: t for one, t in whole.items() if one != "model.layers.1.mlp.down_proj.weight"}
    save_file(lost, weights, metadata={"format": "pt"})
    with pytest.raises(ParameterError, match=r"1 tensors .*model\.layers\.1\.mlp\.down_proj"):
        load_folder(folder, name="broken")
    whole["model.norm.weight"] = whole["model.norm.weight"][:-1].clone()
    save_file(whole, weights, metadata={"format": "pt"})
    with pytest.raises(ParameterError, match=r"1 tensors .*model\.norm\.weight"):
        load_folder(folder, name="broken")


def test_a_truncated_file_and_a_strange_tokenizer_are_one_sentence(
    tiny_slm: LanguageModel, tmp_path: Path
) -> None:
    folder = copy_of(tiny_slm, tmp_path / "cut")
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(5_000)
    with pytest.raises(ParameterError, match=r"model\.safetensors is cut short: .*5000") as cut:
        load_folder(folder, name="broken")
    assert "\n" not in str(cut.value)
    folder = copy_of(tiny_slm, tmp_path / "strange")
    tokenizer = folder / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"WordLevel"', '"WordLevelNext"'))
    with pytest.raises(ParameterError, match="not a readable model folder"):
        load_folder(folder, name="broken")


@pytest.mark.parametrize(
    "changes",
    [{"hidden_size": "x"}, {"num_attention_heads": 0}, {"architectures": 5}, {"dtype": "nope"}],
    ids=str,
)
def test_a_configuration_of_strange_values_is_one_sentence(
    tiny_slm: LanguageModel, tmp_path: Path, changes: dict[str, object]
) -> None:
    folder = copy_of(tiny_slm, tmp_path / "strange")
    config = folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **changes}))
    with pytest.raises(ParameterError):
        check_architecture(folder)


def test_a_family_without_position_embeddings_has_our_limit(tiny_slm: LanguageModel) -> None:
    config = BloomConfig(vocab_size=128, hidden_size=16, n_layer=1, n_head=2)
    lm = wrap_model(BloomForCausalLM(config), tiny_slm.tokenizer, name="bloom")
    assert lm.max_tokens == 4096


def test_greedy_is_greedy_whatever_a_folder_says_of_generation(
    tiny_slm: LanguageModel, tmp_path: Path
) -> None:
    folder = copy_of(tiny_slm, tmp_path / "model")
    (folder / "generation_config.json").write_text(
        '{"eos_token_id": 1, "pad_token_id": 0, "no_repeat_ngram_size": 1, '
        '"repetition_penalty": 9.0, "do_sample": true, "temperature": 0.7}'
    )
    prompts = [one.question + "\n" for one in TINY.pool[:16]]
    plain, told = (
        greedy_rationales(lm, prompts, batch_size=16, max_new_tokens=12)
        for lm in (tiny_slm, load_folder(folder, name="told"))
    )
    assert told == plain


def test_a_tokenizer_without_an_end_token_is_refused(tiny_slm: LanguageModel) -> None:
    tokenizer = character_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ParameterError, match="no end token"):
        wrap_model(tiny_slm.model, tokenizer, name="broken")


def test_a_tiny_model_is_loaded_from_the_cache_the_second_time(
    tiny_cache: Path, tiny_slm: LanguageModel
) -> None:
    start = time.process_time()
    again = load_language_model(tiny_slm.name, cache_dir=tiny_cache)
    assert time.process_time() - start < 3
    assert again.name == tiny_slm.name
    assert torch.equal(again.model.lm_head.weight, tiny_slm.model.lm_head.weight)
    assert not again.model.training


@pytest.mark.parametrize("reference", ["gpt-5", "tiny-slm-3-0", "/nowhere/model", ""])
def test_an_unknown_reference_is_refused_with_the_folder_that_was_looked_in(
    reference: str, tmp_path: Path
) -> None:
    with pytest.raises(ParameterError, match=f"model reference '{reference}'.*{tmp_path}"):
        load_language_model(reference, cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_a_reference_too(tiny_cache: Path, tiny_slm: LanguageModel) -> None:
    folder = build_tiny_model(tiny_cache, "slm", sites=3, seed=0)
    loaded = load_language_model(str(folder), cache_dir=tiny_cache / "unused")
    assert torch.equal(loaded.model.lm_head.weight, tiny_slm.model.lm_head.weight)
    assert not (tiny_cache / "unused").exists()


def test_a_damaged_cache_says_what_to_remove(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ParameterError, match="remove it where it is a cache"):
        load_language_model(str(tmp_path), cache_dir=tmp_path)
