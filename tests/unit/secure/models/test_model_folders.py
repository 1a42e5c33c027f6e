"""Folders that are not the model that they say: each refused by name, in one sentence."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from architecture_doubles import family_folder
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertLMHeadModel, T5Config

from lada_secure.errors import ParameterError
from lada_secure.models.folder import INDEX, WEIGHTS
from lada_secure.models.loading import load_folder
from lada_secure.models.preflight import probe_model

FIRST_UP = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return family_folder("Llama", tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def sharded(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model, one tensor a shard."""
    folder = tmp_path_factory.mktemp("models") / "sharded"
    shutil.copytree(whole, folder)
    tensors = load_file(whole / WEIGHTS)
    (folder / WEIGHTS).unlink()
    placed = {}
    for at, (name, tensor) in enumerate(sorted(tensors.items()), start=1):
        shard = f"model-{at:05}-of-{len(tensors):05}.safetensors"
        save_file({name: tensor}, folder / shard, metadata={"format": "pt"})
        placed[name] = shard
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    return folder


def change_json(path: Path, **changes: Any) -> None:
    known = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**known, **changes}))


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def cut(path: Path, size: int) -> None:
    with path.open("r+b") as file:
        file.truncate(size)


def only_pickled(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def only_gguf(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "model.Q4_K_M.gguf")


def in_eight_bits(folder: Path) -> None:
    change_tensors(
        folder,
        lambda tensors: tensors.update({FIRST_UP: tensors[FIRST_UP].to(torch.float8_e4m3fn)}),
    )


def of_another_family(folder: Path) -> None:
    other = family_folder("GPT-2", folder.parent / f"{folder.name}-other")
    shutil.copy(other / WEIGHTS, folder / WEIGHTS)


def nan_in(folder: Path) -> None:
    change_tensors(folder, lambda tensors: tensors[FIRST_UP].__setitem__((3, 5), float("nan")))


def wrapped_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace('"BPE"', '"BPENext"'))


FAULTS = [
    pytest.param(
        lambda f: (f / "tokenizer.json").unlink(), "has no tokenizer.json", id="no tokenizer"
    ),
    pytest.param(
        lambda f: (f / "tokenizer.json").rename(f / "tokenizer.model"),
        "has no tokenizer.json; convert tokenizer.model",
        id="a SentencePiece file alone",
    ),
    pytest.param(
        lambda f: cut(f / "tokenizer.json", 900), "tokenizer.json is not JSON", id="tokenizer cut"
    ),
    pytest.param(
        lambda f: (f / "tokenizer.json").write_text("{}"),
        "tokenizer.json holds no tokenizer",
        id="tokenizer empty",
    ),
    pytest.param(wrapped_tokenizer, "not a readable model folder", id="a strange tokenizer"),
    pytest.param(
        lambda f: cut(f / "config.json", 40), "config.json is not JSON", id="configuration cut"
    ),
    pytest.param(
        lambda f: (f / "config.json").write_text("[]"), "is no JSON object", id="no configuration"
    ),
    pytest.param(
        lambda f: change_json(f / "config.json", auto_map={"AutoModelForCausalLM": "x.Y"}),
        r"code of its own \(auto_map\), which is never run",
        id="remote code",
    ),
    pytest.param(
        lambda f: change_json(f / "tokenizer_config.json", auto_map={"AutoTokenizer": ["x.Y", 0]}),
        "tokenizer_config.json asks for code of its own",
        id="remote code of the tokenizer",
    ),
    pytest.param(
        lambda f: change_json(f / "config.json", quantization_config={"quant_method": "gptq"}),
        r"quantised \(gptq\)",
        id="GPTQ",
    ),
    pytest.param(
        lambda f: change_json(f / "config.json", quantization_config={"quant_method": "awq"}),
        r"quantised \(awq\)",
        id="AWQ",
    ),
    pytest.param(
        lambda f: change_json(f / "config.json", quantization_config="4bit"),
        "by an unnamed method",
        id="some quantisation",
    ),
    pytest.param(in_eight_bits, "quantised tensors of type F8_E4M3", id="8-bit tensors"),
    pytest.param(only_pickled, r"pickled weights alone \(pytorch_model.bin\)", id="pickled"),
    pytest.param(only_gguf, r"GGUF weights alone \(model.Q4_K_M.gguf\)", id="GGUF"),
    pytest.param(
        lambda f: (f / WEIGHTS).unlink(), "has no model.safetensors and no", id="no weights"
    ),
    pytest.param(lambda f: cut(f / WEIGHTS, 4), "is no safetensors file", id="cut at once"),
    pytest.param(lambda f: cut(f / WEIGHTS, 300), "end within its header", id="cut in the header"),
    pytest.param(
        lambda f: cut(f / WEIGHTS, 50_000), "cut short: expected .* got 50000", id="cut in the data"
    ),
    pytest.param(
        lambda f: (f / WEIGHTS).open("ab").write(b"more"), "longer than its header", id="appended"
    ),
    pytest.param(
        lambda f: (f / WEIGHTS).write_bytes(b"<!DOCTYPE html>" * 99),
        "is no safetensors file",
        id="a page of a web server",
    ),
    pytest.param(
        lambda f: (f / WEIGHTS).write_bytes((20).to_bytes(8, "little") + b'{"a": {"dtype": 1}} '),
        "has a damaged header",
        id="a damaged header",
    ),
    pytest.param(
        lambda f: change_tensors(f, lambda tensors: tensors.pop(FIRST_UP)),
        f"1 tensors are missing or have another shape .*{FIRST_UP}",
        id="a tensor missing",
    ),
    pytest.param(
        lambda f: change_tensors(
            f, lambda tensors: tensors.update({FIRST_UP: tensors[FIRST_UP][:-1].clone()})
        ),
        f"1 tensors are missing or have another shape .*{FIRST_UP}",
        id="a tensor of another shape",
    ),
    pytest.param(
        lambda f: change_tensors(
            f, lambda tensors: tensors.update({"model.layers.7.extra": torch.zeros(3)})
        ),
        r"1 tensors have no place .*model\.layers\.7\.extra",
        id="a tensor too many",
    ),
    pytest.param(
        lambda f: change_json(f / "config.json", num_hidden_layers=1),
        r"9 tensors have no place .*model\.layers\.1",
        id="fewer layers than weights",
    ),
    pytest.param(nan_in, f"1 tensors hold NaN or infinity: {FIRST_UP}", id="NaN"),
    pytest.param(
        of_another_family,
        "21 tensors are missing .*, and 28 are of no use to it",
        id="weights of another architecture",
    ),
    pytest.param(
        lambda f: change_json(f / "config.json", architectures=["GPT2LMHeadModel"]),
        "names the architecture GPT2LMHeadModel, but model_type 'llama' is LlamaForCausalLM",
        id="another architecture named",
    ),
    pytest.param(
        lambda f: change_json(f / "config.json", model_type="llama9"),
        "has no causal language model of model_type 'llama9'",
        id="an unknown family",
    ),
    pytest.param(
        lambda f: change_json(f / "config.json", **T5Config().to_dict()),
        "is an encoder-decoder model",
        id="an encoder-decoder",
    ),
]


@pytest.mark.parametrize(("damage", "message"), FAULTS)
def test_a_folder_that_is_not_as_it_should_be_is_refused_in_one_sentence(
    whole: Path, tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(whole, folder)
    damage(folder)
    with pytest.raises(ParameterError, match=message) as refused:
        load_folder(folder, name="broken")
    assert str(refused.value).startswith(str(folder))
    assert "\n" not in str(refused.value)


SHARD_FAULTS = [
    pytest.param(
        lambda f: (f / "model-00007-of-00021.safetensors").unlink(),
        "1 of 21 shards are missing: model-00007-of-00021.safetensors",
        id="one missing",
    ),
    pytest.param(
        lambda f: cut(f / "model-00007-of-00021.safetensors", 150),
        "model-00007-of-00021.safetensors is cut short",
        id="one cut",
    ),
    pytest.param(
        lambda f: shutil.copy(
            f / "model-00008-of-00021.safetensors", f / "model-00007-of-00021.safetensors"
        ),
        "model-00007-of-00021.safetensors lacks tensors",
        id="one twice",
    ),
    pytest.param(
        lambda f: (f / INDEX).write_text('{"weight_map": {"a": "../../etc/passwd"}}'),
        "names a shard outside the folder",
        id="one elsewhere",
    ),
    pytest.param(lambda f: (f / INDEX).write_text("{}"), "names no shard", id="none"),
]


@pytest.mark.parametrize(("damage", "message"), SHARD_FAULTS)
def test_shards_that_are_not_all_there_are_refused_by_name(
    sharded: Path, tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(sharded, folder)
    damage(folder)
    with pytest.raises(ParameterError, match=message):
        load_folder(folder, name="broken")


def test_every_fault_of_a_folder_is_told_at_once(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(whole, folder)
    (folder / "tokenizer.json").unlink()
    change_json(folder / "config.json", auto_map={}, quantization_config={"quant_method": "hqq"})
    only_pickled(folder)
    with pytest.raises(ParameterError, match=r"auto_map.*hqq.*tokenizer\.json.*pickled"):
        load_folder(folder, name="broken")


def test_shards_load_as_the_one_file_does(whole: Path, sharded: Path) -> None:
    one, many = (load_folder(folder, name="x").model.state_dict() for folder in (whole, sharded))
    assert one.keys() == many.keys()
    assert all(torch.equal(one[name], many[name]) for name in one)


def test_tied_weights_need_one_copy_and_untied_ones_two(whole: Path, tmp_path: Path) -> None:
    tied = load_folder(family_folder("Qwen3", tmp_path / "tied"), name="tied")
    assert "lm_head.weight" not in load_file(tmp_path / "tied" / WEIGHTS)
    embeddings = tied.model.get_input_embeddings().weight
    assert tied.model.get_output_embeddings().weight is embeddings
    folder = tmp_path / "untied"
    shutil.copytree(whole, folder)
    change_tensors(folder, lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(ParameterError, match=r"1 tensors are missing .*lm_head\.weight"):
        load_folder(folder, name="broken")


class _Trap:
    """Unpickled, it would write a file."""

    def __init__(self, target: Path) -> None:
        self._target = target

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self._target,)


def test_pickled_weights_beside_the_others_are_never_read(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(whole, folder)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Trap(tmp_path / "sprung")))
    load_folder(folder, name="both")
    (folder / WEIGHTS).unlink()
    with pytest.raises(ParameterError, match="never read"):
        load_folder(folder, name="pickled")
    assert not (tmp_path / "sprung").exists()


def test_the_tokenizer_is_the_one_that_the_file_holds_whatever_class_is_named(
    tmp_path: Path,
) -> None:
    """A class of the library builds its own tokenizer, here without the BOS token."""
    folder = family_folder("GPT-NeoX", tmp_path / "model")
    path = folder / "tokenizer.json"
    from tokenizers import Tokenizer, processors

    written = Tokenizer.from_file(str(path))
    written.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    written.save(str(path))
    change_json(folder / "tokenizer_config.json", tokenizer_class="GPTNeoXTokenizer")
    lm = load_folder(folder, name="neox")
    for text in ("Which group?\nAnswer:  gout 1,000", "a"):
        assert lm.encode_prompt(text) == written.encode(text).ids
    assert lm.style.head == (0,)


@pytest.mark.parametrize("adds_bos", [True, False])
@pytest.mark.parametrize("family", ["Llama", "Qwen2"])
def test_a_configuration_that_says_whether_a_bos_token_is_added_is_obeyed(
    family: str, adds_bos: bool, tmp_path: Path
) -> None:
    folder = family_folder(family, tmp_path / "model")
    change_json(folder / "tokenizer_config.json", add_bos_token=adds_bos)
    lm = load_folder(folder, name="told")
    assert lm.style.head == ((0,) if adds_bos else ())
    assert lm.encode_prompt("a") == [*lm.style.head, *lm.tokens_of("a")]


def test_a_model_that_looks_ahead_is_no_causal_one(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(whole, folder)
    config = BertConfig(
        vocab_size=400,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        is_decoder=False,
    )
    torch.manual_seed(0)
    model = BertLMHeadModel(config)
    for one in model.parameters():
        if one.dim() > 1:
            torch.nn.init.normal_(one, std=0.5)
    for file in (WEIGHTS, "config.json"):
        (folder / file).unlink()
    model.save_pretrained(folder)
    with pytest.raises(ParameterError, match="no causal"):
        probe_model(load_folder(folder, name="encoder"), what="the model")


def test_a_good_model_is_probed_without_complaint(whole: Path) -> None:
    probe_model(load_folder(whole, name="good"), what="the model")
