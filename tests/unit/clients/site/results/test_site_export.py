"""Exports: loaded by peft alone in a process of its own, and refused where nothing was released."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finished_study import decide, take_part, write_site
from method_doubles import GUIDE
from safetensors.torch import load_file, save_file

from lada_clients.site.ledger.budget import read_budget
from lada_clients.site.results import export as exporting
from lada_clients.site.results.export import ExportFailed, ExportSettings, export
from lada_clients.site.results.study import open_study
from lada_secure.errors import LedgerError, ParameterError, Stopped, TransportError
from lada_secure.method import site_training
from lada_secure.models.adapters import load_adapters, parse_adapter_tensors, weights_of

TOKENS = [[1, 5, 9, 4, 17, 23, 8], [3, 3, 12]]
# What a study trains, by a name; `engine` is the site's own choice.
VARIANTS: dict[str, dict[str, Any]] = {
    "fused": {"engine": "fused"},
    "opacus": {"engine": "opacus"},
    "frozen-a": {"distillation": {"train_a": False}},
    "last-layer": {"distillation": {"adapter_layers": 1}},
    "core-seed": {"distillation": {"train_a": False, "adapter_core": "seed"}},
    "core-weights": {"distillation": {"train_a": False, "adapter_core": "weights"}},
    "guided": {"guide": GUIDE},
    "finishing": {"guide": GUIDE.model_copy(update={"finish": True})},
}
MERGED = ("fused", "core-weights")
# All that a stranger has: no line of this project.
STRANGER = """
import json, sys
import numpy, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base, tokens, *folders = sys.argv[1:]
for folder in folders:
    if folder.endswith("-merged"):
        model = AutoModelForCausalLM.from_pretrained(folder)
    else:
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
    model.eval()
    with torch.no_grad():
        rows = [model(torch.tensor([row])).logits[0].numpy() for row in json.loads(tokens)]
    numpy.save(folder + ".npy", numpy.concatenate(rows))
assert not any(name.startswith("lada") for name in sys.modules)
"""


def engine_of(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    made: Callable[..., Any] = site_training.trainer_settings
    monkeypatch.setattr(
        site_training,
        "trainer_settings",
        lambda *args, **named: replace(made(*args, **named), engine=name),
    )


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site after a study of each variant, all of them exported and loaded by a stranger."""
    root = tmp_path_factory.mktemp("site")
    settings = write_site(root)
    folders = []
    for name, changes in VARIANTS.items():
        with pytest.MonkeyPatch.context() as patch:
            engine_of(patch, changes.get("engine", "auto"))
            kept = {key: value for key, value in changes.items() if key != "engine"}
            take_part(settings, study_id=name, **kept)
        study = open_study(settings, name)
        for merge in (False, True) if name in MERGED else (False,):
            out = root / f"{name}{'-merged' if merge else ''}"
            export(study, None, out, ExportSettings(merge=merge))
            folders.append(str(out))
    base = str(root / "cache" / "slm")
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, base, json.dumps(TOKENS), *folders],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return root


def logits_here(root: Path, name: str, *, trained: bool = True) -> np.ndarray:
    study = open_study(root / "site.toml", name)
    lm = study.open_model()
    if trained:
        load_adapters(lm, study.adapters(study.round(None)))
    with torch.no_grad():
        return np.concatenate([lm.model(torch.tensor([row])).logits[0].numpy() for row in TOKENS])


@pytest.mark.parametrize(
    ("name", "folder"),
    [*((name, name) for name in VARIANTS), *((name, f"{name}-merged") for name in MERGED)],
)
def test_a_stranger_with_peft_alone_gets_the_same_logits(
    exported: Path, name: str, folder: str
) -> None:
    there = np.load(exported / f"{folder}.npy")
    here = logits_here(exported, name)
    assert np.abs(there - here).max() < 1e-5
    # Training has changed something, or any folder would pass.
    assert np.abs(logits_here(exported, name, trained=False) - here).max() > 1e-3


def test_the_folder_holds_what_others_read(exported: Path) -> None:
    folder = exported / "last-layer"
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "slm"
    assert (config["peft_type"], config["r"]) == ("LORA", 8)
    assert config["layers_to_transform"] == [1]
    assert str(exported) not in "".join(
        path.read_text() for path in folder.iterdir() if path.suffix != ".safetensors"
    )
    study = open_study(exported / "site.toml", "last-layer")
    facts = json.loads((folder / "lada.json").read_text())
    assert facts["slm"] == study.slm.model_dump()
    assert facts["adapters_sha256"] == study.adapters(1).sha256
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (folder / name).read_bytes() == (study.settings.slm_folder / name).read_bytes()
    assert json.loads((folder / "generation_config.json").read_text())["do_sample"] is False
    assert not (exported / "fused-merged" / "adapter_config.json").exists()


def test_the_card_says_what_was_paid_and_holds_no_private_figure(exported: Path) -> None:
    card = (exported / "guided" / "README.md").read_text()
    budget = read_budget(exported / "site.toml")
    (own,) = (one for one in budget.summary.studies if one.study_id == "guided")
    for said in (
        f"| epsilon, this study | {own.epsilon:.4f} |",
        "| delta | 1e-5 |",
        "`people` at `site-a`",
        "| plan approved | dr-meyer,",
        "rounds 0 to 1 of 2",
        "not recorded",
        "stay at the site",
    ):
        assert said in card
    assert "accuracy 0" not in card


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site after both rounds of one study. Returns: its settings file."""
    settings = write_site(tmp_path)
    take_part(settings)
    return settings


def refused(
    settings: Path, error: type[Exception], match: str, round_id: int | None = None
) -> None:
    out = settings.parent / "out" / "model"
    with pytest.raises(error, match=match):
        export(open_study(settings, None), round_id, out, ExportSettings())
    assert not out.parent.exists() or not list(out.parent.iterdir())


def change_state(settings: Path, **changes: Any) -> Path:
    """Change the site's note of the study. Returns: the study's folder."""
    folder = open_study(settings, None).folder
    path = folder / "site-state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def test_a_round_that_the_ledger_has_not_released_is_refused(tmp_path: Path) -> None:
    settings = write_site(tmp_path)
    take_part(settings, rounds=1)
    refused(settings, ParameterError, "--round 1: .* has the trained rounds 0 here", 1)
    # Whoever adds weights of their own finds no word of them in the ledger.
    folder = change_state(settings, trained=[0, 1], students={})
    shutil.copy(folder / "adapters-round-0.safetensors", folder / "adapters-round-1.safetensors")
    refused(
        settings,
        LedgerError,
        "round 1 of study study-1 is no committed release: the ledger has no output of study "
        "study-1, round 1, training, chunk 0",
    )
    export(open_study(settings, None), 0, tmp_path / "first", ExportSettings())


def test_other_weights_in_the_place_of_released_ones_are_refused(site: Path) -> None:
    folder = open_study(site, None).folder
    path = folder / "adapters-round-1.safetensors"
    weights = open_study(site, None).adapters(1)
    tensors = parse_adapter_tensors(weights)
    other = weights_of({name: one * 1.01 for name, one in tensors.items()})
    path.write_bytes(other.data)
    refused(site, ParameterError, "is not what site-state.json speaks of")
    # Nor where the note agrees with them: the ledger holds the numbers.
    change_state(site, student=other.sha256, students={"1": other.sha256})
    refused(site, LedgerError, "is not what entry [0-9]+ of the ledger has released")


def test_other_frozen_factors_are_refused(tmp_path: Path) -> None:
    """The ledger's output holds what was trained; the rest follows from the plan."""
    settings = write_site(tmp_path)
    take_part(settings, **VARIANTS["frozen-a"])
    folder = open_study(settings, None).folder
    tensors = parse_adapter_tensors(open_study(settings, None).adapters(1))
    other = weights_of(
        {name: one * (1.01 if "lora_A" in name else 1.0) for name, one in tensors.items()}
    )
    (folder / "adapters-round-1.safetensors").write_bytes(other.data)
    change_state(settings, student=other.sha256, students={"1": other.sha256})
    refused(settings, LedgerError, "frozen numbers that do not follow from the plan")


def test_an_earlier_round_of_an_old_state_is_told_by_the_ledgers_output(site: Path) -> None:
    change_state(site, students={})
    export(open_study(site, None), 0, site.parent / "ok", ExportSettings())


def test_an_earlier_guided_round_that_no_note_names_is_refused(tmp_path: Path) -> None:
    settings = write_site(tmp_path)
    take_part(settings, guide=GUIDE)
    export(open_study(settings, None), 0, tmp_path / "first", ExportSettings())
    change_state(settings, students={})
    refused(settings, LedgerError, "names the last round's alone", 0)
    export(open_study(settings, None), 1, tmp_path / "last", ExportSettings())


def test_a_site_that_withdrew_lets_nothing_more_out(site: Path) -> None:
    study = open_study(site, None)
    decide(study.settings, study.plan, "withdraw")
    refused(site, LedgerError, "in the ledger is withdraw, expected approve")


def test_a_missing_or_damaged_ledger_releases_nothing(site: Path) -> None:
    path = site.parent / "state" / "ledger-people.sqlite"
    content = path.read_bytes()
    at = content.rindex(b'"purpose":"training"')
    path.write_bytes(content[:at] + b'"purpose":"trainin!"' + content[at + 20 :])
    refused(site, LedgerError, "entry")
    path.unlink()
    refused(site, ParameterError, "no ledger of population people")


def test_another_model_than_was_signed_for_is_refused(site: Path) -> None:
    path = site.parent / "cache" / "slm" / "model.safetensors"
    tensors = load_file(path)
    save_file({name: one * 1.5 for name, one in tensors.items()}, path, metadata={"format": "pt"})
    refused(
        site, ParameterError, "is not the one that study study-1 was trained on: weights_sha256"
    )


def test_nothing_is_overwritten(site: Path) -> None:
    out = site.parent / "there"
    out.mkdir()
    with pytest.raises(ParameterError, match="is there already; expected a new folder"):
        export(open_study(site, None), None, out, ExportSettings())
    assert list(out.iterdir()) == []


def test_a_disk_that_fills_leaves_nothing(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(exporting.shutil, "copyfile", full)
    refused(site, TransportError, "No space left on device; nothing was left there")


def test_an_export_that_is_stopped_leaves_nothing(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        exporting.shutil, "copyfile", lambda *_: os.kill(os.getpid(), signal.SIGTERM)
    )
    refused(site, Stopped, "stopped by SIGTERM; nothing was left at ")
    assert not (site.parent / "out").exists()


def test_what_does_not_answer_as_the_model_here_is_not_kept(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = exporting.save_as_lora

    def wrongly(lm: Any, folder: Path) -> None:
        write(lm, folder)
        path = folder / "adapter_model.safetensors"
        tensors = {name: 3 * one for name, one in load_file(path).items()}
        save_file(tensors, path, metadata={"format": "pt"})

    monkeypatch.setattr(exporting, "save_as_lora", wrongly)
    refused(site, ExportFailed, "answer another thing than the model here")


def test_figures_that_were_never_measured_are_refused(site: Path) -> None:
    out = site.parent / "out"
    with pytest.raises(ParameterError, match="was never evaluated here"):
        export(open_study(site, None), None, out, ExportSettings(figures=True))
    assert not out.exists()


def test_other_families_and_short_types_are_exported_too(tmp_path: Path) -> None:
    for family, dtype, targets in (
        ("GPT-2", "float32", ("c_attn",)),
        ("Llama", "bfloat16", ("q_proj",)),
    ):
        root = tmp_path / family
        root.mkdir()
        settings = write_site(root, family=family, dtype=dtype)
        take_part(settings, rounds=1, distillation={"adapter_targets": targets})
        done = export(open_study(settings, None), None, root / "out", ExportSettings(merge=True))
        assert "model.safetensors" in done.files
