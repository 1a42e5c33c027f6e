"""Which model a folder holds: everything that decides its output is told, and hashed once."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from slm_files import PARAMETERS, write_slm, write_weights

from lada_secure.errors import ParameterError
from lada_secure.models.fingerprints import FileHashes, identify
from lada_secure.models.identity import ModelIdentity, SlmPlan

# Long after any file of these tests was written.
LATER_S = 4e9


def identity(folder: Path, hashes: FileHashes | None = None, *, template: str = "plain") -> object:
    return identify(folder, hashes or FileHashes(None), template=template, licence="MIT")


def test_a_folder_is_named_by_its_configuration_its_size_and_three_hashes(tmp_path: Path) -> None:
    found = identify(
        write_slm(tmp_path / "slm"), FileHashes(None), template="plain", licence="MIT", revision="7"
    )
    assert (found.architecture, found.parameters) == ("LlamaForCausalLM", PARAMETERS)
    assert found.sentence() == "LlamaForCausalLM, 36 parameters, licence MIT, revision 7"
    assert len({found.weights_sha256, found.tokenizer_sha256, found.template_sha256}) == 3
    # Name and place say nothing.
    shutil.copytree(tmp_path / "slm", tmp_path / "elsewhere")
    again = identify(
        tmp_path / "elsewhere", FileHashes(None), template="plain", licence="MIT", revision="7"
    )
    assert again == found


@pytest.mark.parametrize(
    ("name", "content", "changed"),
    [
        ("config.json", '{"architectures": ["LlamaForCausalLM"], "rope": 1}', "weights_sha256"),
        ("adapter_config.json", "{}", "weights_sha256"),
        ("tokenizer.json", '{"other": 1}', "tokenizer_sha256"),
        ("tokenizer_config.json", "{}", "tokenizer_sha256"),
        ("special_tokens_map.json", "{}", "tokenizer_sha256"),
        ("merges.txt", "a b", "tokenizer_sha256"),
        ("chat_template.jinja", "{{ question }}", "template_sha256"),
    ],
)
def test_each_file_that_decides_the_output_changes_its_own_hash(
    tmp_path: Path, name: str, content: str, changed: str
) -> None:
    folder = write_slm(tmp_path / "slm")
    before = identify(folder, FileHashes(None), template="plain")
    (folder / name).write_text(content)
    assert before.changes(identify(folder, FileHashes(None), template="plain")) == (changed,)


def test_files_that_decide_nothing_change_nothing(tmp_path: Path) -> None:
    folder = write_slm(tmp_path / "slm")
    before = identity(folder)
    (folder / "README.md").write_text("nice")
    (folder / "generation_config.json").write_text('{"temperature": 2}')
    (folder / "consolidated.safetensors").write_text("the same weights once more")
    assert identity(folder) == before


def test_the_way_of_calling_is_part_of_it(tmp_path: Path) -> None:
    folder = write_slm(tmp_path / "slm")
    one = identify(folder, FileHashes(None), template="plain")
    assert one.changes(identify(folder, FileHashes(None), template="chat")) == ("template_sha256",)


def test_shards_count_together(tmp_path: Path) -> None:
    folder = write_slm(tmp_path / "slm")
    (folder / "model.safetensors").unlink()
    write_weights(folder / "a.safetensors", b"a", {"one": [3, 5]})
    write_weights(folder / "b.safetensors", b"b", {"two": [7]})
    index = {"weight_map": {"one": "a.safetensors", "two": "b.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    before = identify(folder, FileHashes(None), template="plain")
    assert before.parameters == 22
    write_weights(folder / "b.safetensors", b"c", {"two": [7]})
    after = identify(folder, FileHashes(None), template="plain")
    assert before.changes(after) == ("weights_sha256",)


def _without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _cut_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"architectures": ["Lla')


def _nested_config(folder: Path) -> None:
    (folder / "config.json").write_text("[" * 100_000)


def _config_is_a_list(folder: Path) -> None:
    (folder / "config.json").write_text("[]")


def _nameless(folder: Path) -> None:
    (folder / "config.json").write_text("{}")


def _strange_name(folder: Path) -> None:
    (folder / "config.json").write_text('{"architectures": ["rm -rf / #"]}')


def _without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:20])


def _no_safetensors(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\xff" * 64)


def _missing_shard(folder: Path) -> None:
    _without_weights(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "gone"}}')


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_without_config, r"config\.json: cannot be read"),
        (_cut_config, r"config\.json: no JSON"),
        (_nested_config, r"config\.json: no JSON"),
        (_config_is_a_list, r"config\.json: no JSON object"),
        (_nameless, "architecture: .* no model folder"),
        (_strange_name, "architecture: .* no model folder"),
        (_without_weights, r"expected model\.safetensors, or shards"),
        (_cut_weights, r"model\.safetensors: missing, no safetensors file, or cut short"),
        (_no_safetensors, r"model\.safetensors: missing, no safetensors file, or cut short"),
        (_missing_shard, "gone: missing, no safetensors file"),
    ],
)
def test_what_is_no_model_folder_is_refused_by_name(
    tmp_path: Path, spoil: object, message: str
) -> None:
    folder = write_slm(tmp_path / "slm")
    spoil(folder)  # type: ignore[operator]
    with pytest.raises(ParameterError, match=message):
        identity(folder)


class Counted(FileHashes):
    """Counts looks at whole files."""

    def __init__(self, cache: Path | None, *, now_s: float = LATER_S) -> None:
        super().__init__(cache, now=lambda: now_s)
        self.cache = cache

    @property
    def kept(self) -> int:
        """How many hashes it holds."""
        return len(self._known)


def test_a_file_is_hashed_once_and_its_hash_outlives_the_process(tmp_path: Path) -> None:
    folder, cache = write_slm(tmp_path / "slm"), tmp_path / "state" / "hashes.json"
    before = identity(folder, Counted(cache))
    text = cache.read_text()
    # The next process believes what the cache says of these very files.
    cache.write_text(text.replace(text.split('":"')[1][:64], "0" * 64))
    assert identity(folder, Counted(cache)) != before
    cache.write_text(text)
    assert identity(folder, Counted(cache)) == before


@pytest.mark.parametrize("content", ["", "[]", "{", '{"format": "other", "files": {}}'])
def test_a_cache_of_another_kind_is_made_again(tmp_path: Path, content: str) -> None:
    folder, cache = write_slm(tmp_path / "slm"), tmp_path / "hashes.json"
    cache.write_text(content)
    assert identity(folder, Counted(cache)) == identity(folder)
    assert "lada-file-hashes/1" in cache.read_text()


def test_other_weights_with_the_same_size_and_date_are_other_weights(tmp_path: Path) -> None:
    folder, hashes = write_slm(tmp_path / "slm", content=b"one"), Counted(None)
    before = identity(folder, hashes)
    weights = folder / "model.safetensors"
    date = weights.stat()
    write_weights(weights, b"two")
    os.utime(weights, ns=(date.st_atime_ns, date.st_mtime_ns))
    assert weights.stat().st_size == date.st_size
    assert identity(folder, hashes) != before


def test_a_file_that_was_written_just_now_is_hashed_again_at_the_next_look(tmp_path: Path) -> None:
    folder = write_slm(tmp_path / "slm")
    at = (folder / "model.safetensors").stat().st_ctime
    hashes = Counted(None, now_s=at + 1.0)
    identity(folder, hashes)
    assert hashes.kept == 0
    hashes = Counted(None, now_s=at + 60.0)
    identity(folder, hashes)
    assert hashes.kept == 3


MODEL = ModelIdentity(
    architecture="Gemma3ForCausalLM",
    parameters=268_098_176,
    licence="Gemma",
    revision="",
    weights_sha256="1" * 64,
    tokenizer_sha256="2" * 64,
    template_sha256="3" * 64,
)


@pytest.mark.parametrize(
    ("bounds", "faults"),
    [
        ({}, ()),
        ({"families": ["LlamaForCausalLM", "Gemma3ForCausalLM"], "licences": ["Gemma"]}, ()),
        ({"max_parameters": 268_098_176}, ()),
        (
            {"families": ["LlamaForCausalLM"]},
            ("its architecture is Gemma3ForCausalLM, allowed are LlamaForCausalLM",),
        ),
        (
            {"max_parameters": 268_098_175},
            ("it has 268,098,176 parameters, allowed are 268,098,175",),
        ),
        ({"licences": ["MIT", "gemma"]}, ("its licence is 'Gemma', allowed are MIT, gemma",)),
    ],
)
def test_bounds_say_what_is_wrong_with_a_model(
    bounds: dict[str, object], faults: tuple[str, ...]
) -> None:
    assert SlmPlan.model_validate(bounds).faults(MODEL) == faults


def test_where_a_licence_is_asked_for_a_model_without_one_is_refused() -> None:
    nameless = MODEL.model_copy(update={"licence": ""})
    assert SlmPlan(licences=("MIT",)).faults(nameless) == ("it names no licence, allowed are MIT",)


def test_bounds_in_words_stay_short() -> None:
    assert SlmPlan().sentence() == "of any architecture, any size, any licence"
    many = SlmPlan(
        families=tuple(f"Family{number}" for number in range(50)),
        max_parameters=1000,
        licences=("L" * 200,) * 50,
    ).sentence()
    assert many.startswith("of Family0 or Family1 or Family2 or 47 others, at most 1,000 param")
    assert len(many) < 300
