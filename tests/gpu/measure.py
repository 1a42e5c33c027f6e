"""What a DP-SGD step costs on a CUDA device, for a model of SmolLM2-135M's shape: one JSON line.

    PYTHONPATH=.:lab python tests/gpu/measure.py

Weights are random (no file is needed); LoRA of rank 8 on query and value of all layers. Variants
are those of `lada bench dpsgd`; they share the process and take turns, so that whatever the device
does besides meets all of them. Seconds are medians between synchronisations, bytes torch's own
allocations above what the idle models hold. Needs torch, transformers, peft and cryptography.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from fractions import Fraction

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM
from transformers import __version__ as transformers_version

from lada_lab.micro.dpsgd_variants import BenchPlace, make_step, make_tokens
from lada_secure.dpsgd.noise import DiscreteGaussian
from lada_secure.dpsgd.parameters import STD_STEPS

VARIANTS = ("plain", "fused_nonprivate", "fused")
SHAPES = ((128, 16), (128, 32), (256, 16), (256, 32))


def build_model(layers):
    """SmolLM2-135M's shape at 30 layers; the same random weights every time."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=49_152,
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=layers,
            num_attention_heads=9,
            num_key_value_heads=3,
            max_position_embeddings=8192,
            tie_word_embeddings=True,
        )
    )
    lora = LoraConfig(
        r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
    )
    return get_peft_model(model, lora)


def synchronise(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def one_step(step, tokens, device):
    """Seconds, and the peak of bytes above what was allocated before."""
    on_gpu = device.type == "cuda"
    before = torch.cuda.memory_allocated(device) if on_gpu else 0
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    synchronise(device)
    started = time.perf_counter()
    step(tokens)
    synchronise(device)
    seconds = time.perf_counter() - started
    return seconds, torch.cuda.max_memory_allocated(device) - before if on_gpu else 0


def measure(place, layers, shapes, repetitions):
    device = place.torch_device()
    steps = {one: make_step(one, build_model(layers), place) for one in VARIANTS}
    cases = {}
    for length, batch in shapes:
        tokens = make_tokens(49_152, sequence_length=length, batch_size=batch)
        found = {one: [] for one in VARIANTS}
        for repetition in range(repetitions + 2):
            for one in VARIANTS if repetition % 2 else reversed(VARIANTS):
                figures = one_step(steps[one], tokens, device)
                if repetition >= 2:
                    found[one].append(figures)
        seconds = {one: statistics.median(s for s, _ in some) for one, some in found.items()}
        peaks = {one: max(peak for _, peak in some) for one, some in found.items()}
        cases[f"{length}x{batch}"] = {
            "step_s": {one: round(value, 5) for one, value in seconds.items()},
            "peak_bytes": peaks,
            "ratio": round(seconds["plain"] / seconds["fused"], 4),
            "ratio_to_fused_nonprivate": round(seconds["fused_nonprivate"] / seconds["fused"], 4),
            "memory_ratio": round(peaks["fused"] / max(peaks["plain"], 1), 4),
        }
    return cases


def noise_seconds(count):
    """Median time that drawing one step's noise takes, on the CPU."""
    sampler = DiscreteGaussian(Fraction(STD_STEPS))
    found = []
    for _ in range(7):
        started = time.perf_counter()
        sampler.sample(count)
        found.append(time.perf_counter() - started)
    return statistics.median(found)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--shapes", default=",".join(f"{a}x{b}" for a, b in SHAPES))
    parser.add_argument("--precisions", default="float32,bfloat16")
    asked = parser.parse_args()
    warnings.filterwarnings("ignore")
    if asked.device == "cuda" and not torch.cuda.is_available():
        sys.exit("measure.py: torch sees no CUDA device")
    shapes = [tuple(int(one) for one in shape.split("x")) for shape in asked.shapes.split(",")]
    trained = sum(
        one.numel() for one in build_model(asked.layers).parameters() if one.requires_grad
    )
    report = {
        "device": torch.cuda.get_device_name() if asked.device == "cuda" else asked.device,
        "torch": torch.__version__,
        "transformers": transformers_version,
        "trainable_parameters": trained,
        "repetitions": asked.repetitions,
        "noise_s": round(noise_seconds(trained), 5),
    }
    for precision in asked.precisions.split(","):
        place = BenchPlace(device=asked.device, precision=precision)
        report[precision] = measure(place, asked.layers, shapes, asked.repetitions)
        if asked.device == "cuda":
            torch.cuda.empty_cache()
    print(json.dumps(report))


if __name__ == "__main__":
    main()
