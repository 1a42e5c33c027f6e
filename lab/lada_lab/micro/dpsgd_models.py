"""What `lada bench dpsgd` trains: a model, where it lies, and made-up tokens."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from lada_lab.worlds.named_models import make_model
from lada_secure.errors import ParameterError
from lada_secure.models.loading import load_folder
from lada_secure.models.placement import ON_CPU, Dtype, Placement
from lada_secure.ranges import at_least


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchModel:
    """A model with LoRA on query and value of every layer.

    A Llama model of the given shape, or the real one that `reference` names
    (`make_model`, looked for in `cache_dir`).
    """

    layers: int = 4
    hidden_size: int = 256
    vocabulary: int = 4096
    rank: int = 8
    reference: str | None = None
    cache_dir: Path | None = None

    def described(self) -> dict[str, Any]:
        """What a report says of it."""
        if self.reference is not None:
            return {"reference": self.reference, "rank": self.rank}
        return {
            "layers": self.layers,
            "hidden_size": self.hidden_size,
            "vocabulary": self.vocabulary,
            "rank": self.rank,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchPlace:
    """Where the steps run. threads: of the CPU. Everything else as in `Placement`."""

    device: str = "cpu"
    dtype: Dtype = "float32"
    gradient_checkpointing: bool = False
    threads: int = 1

    def placement(self) -> Placement:
        """The same, checked. Raises: ParameterError: unknown, or CUDA where there is none."""
        at_least(1, threads=self.threads)
        return Placement(
            device=self.device,
            dtype=self.dtype,
            gradient_checkpointing=self.gradient_checkpointing,
        ).on_this_machine()

    def torch_device(self) -> torch.device:
        """Raises: ParameterError: as `placement`."""
        return self.placement().torch_device


def build_model(shape: BenchModel, place: BenchPlace | None = None) -> Any:
    """The model with float32 adapters, placed; the same weights for the same shape."""
    where = (place or BenchPlace()).placement()
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
        torch.manual_seed(0)
        lora = LoraConfig(
            r=shape.rank,
            lora_alpha=2 * shape.rank,
            target_modules=["q_proj", "v_proj"],
            task_type="CAUSAL_LM",
        )
        base = _base_model(shape)
        for one in base.parameters():
            # Not the buffers: positions are computed in float32 whatever the weights are.
            one.data = one.data.to(where.torch_dtype)
        return get_peft_model(base, lora).to(where.torch_device)


def _base_model(shape: BenchModel) -> Any:
    if shape.reference is not None:
        if shape.cache_dir is None:
            raise ParameterError("bench dpsgd: a named model needs a cache folder")
        folder = make_model(shape.reference, cache_dir=shape.cache_dir)
        return load_folder(folder, name=shape.reference, placement=ON_CPU).model
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=shape.vocabulary,
            hidden_size=shape.hidden_size,
            intermediate_size=4 * shape.hidden_size,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.hidden_size // 64,
            num_key_value_heads=shape.hidden_size // 64,
            max_position_embeddings=4096,
        )
    )


def make_tokens(vocabulary: int, *, sequence_length: int, batch_size: int) -> torch.Tensor:
    """(batch_size, sequence_length) int64 on the CPU, the same for the same arguments."""
    generator = torch.Generator().manual_seed(sequence_length * 1000 + batch_size)
    return torch.randint(vocabulary, (batch_size, sequence_length), generator=generator)
