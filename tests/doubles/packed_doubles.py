"""Small models whose linear layers are packed by bitsandbytes, on the CPU or a GPU."""

from __future__ import annotations

import bitsandbytes
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM


def packed(model, how, *, compute_dtype=torch.float32):
    """The model with its linear layers in "4bit" or "8bit", but for the head, where it lies."""
    for name, layer in list(model.named_modules()):
        if type(layer) is nn.Linear and layer is not model.get_output_embeddings():
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, _packed(layer, how, compute_dtype))
    # What transformers tells peft after it has loaded a packed model.
    model.is_loaded_in_4bit, model.is_loaded_in_8bit = how == "4bit", how == "8bit"
    return model


def _packed(layer, how, compute_dtype):
    weight, device = layer.weight.data, layer.weight.device
    shape = {"bias": layer.bias is not None}
    if how == "4bit":
        found = bitsandbytes.nn.Linear4bit(
            layer.in_features,
            layer.out_features,
            compute_dtype=compute_dtype,
            quant_type="nf4",
            **shape,
        )
        found.weight = bitsandbytes.nn.Params4bit(weight, requires_grad=False, quant_type="nf4")
        # On a CPU the library packs a second time for passes without gradients, and then has none.
        found.support_avx512bf16_for_cpu = False
    else:
        found = bitsandbytes.nn.Linear8bitLt(
            layer.in_features, layer.out_features, has_fp16_weights=False, threshold=6.0, **shape
        )
        # Packed when it is moved, from the CPU.
        found.weight = bitsandbytes.nn.Int8Params(
            weight.cpu(), requires_grad=False, has_fp16_weights=False
        )
    if layer.bias is not None:
        found.bias = nn.Parameter(layer.bias.data, requires_grad=False)
    return found.to(device)


def wide_llama(*, seed=0):
    """A small Llama whose widths are whole blocks of 64 numbers, which 4-bit weights come in."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=40,
                hidden_size=64,
                intermediate_size=128,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=4,
                max_position_embeddings=64,
                pad_token_id=0,
                bos_token_id=None,
                eos_token_id=1,
            )
        )
        for one in model.parameters():
            if one.dim() > 1:
                nn.init.normal_(one, std=0.15)
    return model.eval()
