"""A model folder of a few bytes: enough to tell which model it is, and nothing to load."""

from __future__ import annotations

import json
from pathlib import Path

TENSORS = {"lm_head.weight": [8, 4], "model.norm.weight": [4]}
PARAMETERS = 36


def write_slm(
    folder: Path, *, architecture: str = "LlamaForCausalLM", content: bytes = b"weights"
) -> Path:
    """Write configuration, tokenizer and weights. content: stands for the tensors' bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    (folder / "tokenizer.json").write_text("{}")
    write_weights(folder / "model.safetensors", content)
    return folder


def write_weights(path: Path, content: bytes, tensors: dict[str, list[int]] = TENSORS) -> None:
    """A file with the header of safetensors."""
    described = {name: {"dtype": "F32", "shape": shape} for name, shape in tensors.items()}
    header = json.dumps({"__metadata__": {"format": "pt"}, **described}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + content)
