"""What a DP-SGD step costs beside plain LoRA on one CUDA device, row by row.

    bash tests/gpu/run.sh [--dry] [--out FOLDER]

A row is a shape with random weights and a base in float32, in bfloat16 or packed in 4 bits; LoRA of
rank 8 on query and value of all layers. Each runs in a process of its own under its own time limit,
so that one that fails loses no other. Plain and private steps take turns on one model. Seconds are
medians between synchronisations; bytes are torch's own allocations at the peak of a step above what
the idle model holds.

`--dry` runs the same rows on the CPU in tiny shapes: it shows that the script runs, and measures
nothing.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import time
import traceback
import warnings
from contextlib import closing
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "lab"), str(ROOT / "tests" / "doubles")]

import torch  # noqa: E402
import transformers  # noqa: E402
from peft import LoraConfig, get_peft_model  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

from lada_lab.micro.dpsgd_models import BenchPlace, make_tokens  # noqa: E402
from lada_lab.micro.dpsgd_variants import PrivateSteps, make_step  # noqa: E402
from lada_secure.dpsgd.trainer import drawn_noise  # noqa: E402

# The models that the names call to mind: SmolLM2-135M, Llama 3.2 1B and Llama 3.1 8B.
SHAPES = {
    "135m": {
        "vocab_size": 49_152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "tie_word_embeddings": True,
    },
    "1b": {
        "vocab_size": 128_256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": True,
    },
    "8b": {
        "vocab_size": 128_256,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": False,
    },
}
TINY = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "tie_word_embeddings": True,
}
# Rows of a step times their tokens; and the most seconds a row may take.
BATCHES = {"135m": ((16, 128), (32, 256)), "1b": ((16, 256),), "8b": ((16, 128),)}
LIMITS_S = {"135m": 50.0, "1b": 60.0, "8b": 80.0}
# All rows together: a caller's limit of eight minutes is kept with room for the table.
DEADLINE_S = 440.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row: a shape, the type of its base, and what a step is made of.

    A step has `batch` rows of `length` tokens, `records` of them a unit's. With a base shorter than
    float32 only a unit's own rows share a forward pass.
    """

    shape: str
    base: str
    batch: int
    length: int
    records: int
    checkpointing: bool
    dry: bool

    @property
    def name(self):
        units = f", units of {self.records}" if self.records > 1 else ""
        ways = ", checkpointing" if self.checkpointing else ""
        return f"{self.shape} {self.base} {self.batch}x{self.length}{units}{ways}"


def rows(dry):
    """The rows that matter most come first: the deadline may cut the last."""
    found = []
    for shape in ("135m", "1b", "8b"):
        for base in ("float32", "bfloat16", "4bit"):
            for batch, length in BATCHES[shape]:
                found.append((shape, base, batch, length, 1, False))
        if shape != "135m":
            found.append((shape, "bfloat16", *BATCHES[shape][0], 8, False))
    found.append(("8b", "bfloat16", *BATCHES["8b"][0], 8, True))
    if dry:
        found = list(
            dict.fromkeys(
                (shape, base, 4, 8, min(records, 2), again)
                for shape, base, _, _, records, again in found
            )
        )
    return [
        Row(
            shape=shape,
            base=base,
            batch=batch,
            length=length,
            records=records,
            checkpointing=again,
            dry=dry,
        )
        for shape, base, batch, length, records, again in found
    ]


def build(row, place):
    """The model of a row on its device, with float32 adapters."""
    torch.manual_seed(0)
    config = LlamaConfig(max_position_embeddings=8192, **(TINY if row.dry else SHAPES[row.shape]))
    with torch.device(place.torch_device()):
        model = LlamaForCausalLM(config).eval()
    short = torch.float32 if row.base == "float32" else torch.bfloat16
    for one in model.parameters():
        one.data = one.data.to(short)
    if row.base == "4bit":
        from packed_doubles import packed

        model = packed(model, "4bit", compute_dtype=torch.bfloat16)
    lora = LoraConfig(
        r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
    )
    return get_peft_model(model, lora).to(place.torch_device())


class Meter:
    """Seconds and peak bytes of a step; bytes are 0 on a CPU."""

    def __init__(self, device):
        self._device = device
        self._on_gpu = device.type == "cuda"

    def idle_bytes(self):
        return torch.cuda.memory_allocated(self._device) if self._on_gpu else 0

    def _wait(self):
        if self._on_gpu:
            torch.cuda.synchronize(self._device)

    def measure(self, step, tokens):
        before = self.idle_bytes()
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats(self._device)
        self._wait()
        started = time.perf_counter()
        step(tokens)
        self._wait()
        seconds = time.perf_counter() - started
        peak = torch.cuda.max_memory_allocated(self._device) - before if self._on_gpu else 0
        return seconds, peak


def measure_steps(model, place, tokens, meter, *, records, turns, steps):
    """Medians of plain and private steps; each turn begins with two steps that do not count."""
    found = {"plain": [], "private": []}
    for turn in range(turns):
        for name in ("plain", "private") if turn % 2 else ("private", "plain"):
            if name == "plain":
                step = make_step("plain", model, place)
                taken = [meter.measure(step, tokens) for _ in range(steps + 2)]
            else:
                with closing(PrivateSteps(model, place, "fused", records=records)) as private:
                    taken = [meter.measure(private.private, tokens) for _ in range(steps + 2)]
            found[name] += taken[2:]
    return {
        name: (statistics.median(s for s, _ in some), max(peak for _, peak in some))
        for name, some in found.items()
    }


def moved_adapters(model, place, tokens, engine):
    """How many of the matrices B a private step of an engine changes, as "60 of 60"."""
    before = {
        name: one.detach().clone() for name, one in model.named_parameters() if "lora_B" in name
    }
    with closing(PrivateSteps(model, place, engine)) as steps:
        steps.private(tokens)
    after = dict(model.named_parameters())
    moved = sum(not torch.equal(one, after[name]) for name, one in before.items())
    return f"{moved} of {len(before)}"


def measured(row):
    """Figures of a row. Raises: whatever goes wrong in it."""
    warnings.filterwarnings("ignore")
    transformers.utils.logging.set_verbosity_error()
    if row.dry:
        torch.set_num_threads(1)
    dtype = "float32" if row.base == "float32" else "bfloat16"
    place = BenchPlace(
        device="cpu" if row.dry else "cuda",
        dtype=dtype,
        gradient_checkpointing=row.checkpointing,
    )
    started = time.perf_counter()
    model = build(row, place)
    meter = Meter(place.torch_device())
    trained = sum(one.numel() for one in model.parameters() if one.requires_grad)
    vocabulary = int(model.config.vocab_size)
    tokens = make_tokens(vocabulary, sequence_length=row.length, batch_size=row.batch)
    idle, built_s = meter.idle_bytes(), time.perf_counter() - started
    steps = 1 if row.dry else 3 if row.shape == "8b" else 5
    taken = measure_steps(model, place, tokens, meter, records=row.records, turns=2, steps=steps)
    began = time.perf_counter()
    drawn_noise(trained, place.torch_device())
    noise_s = time.perf_counter() - began
    (plain_s, plain_bytes), (private_s, private_bytes) = taken["plain"], taken["private"]
    count = row.batch * row.length
    return {
        "plain_s": round(plain_s, 5),
        "private_s": round(private_s, 5),
        "ratio": round(plain_s / private_s, 4),
        "plain_tokens_per_s": round(count / plain_s),
        "private_tokens_per_s": round(count / private_s),
        "idle_bytes": idle,
        "plain_bytes": plain_bytes,
        "private_bytes": private_bytes,
        "trained": trained,
        "noise_s": round(noise_s, 5),
        "built_s": round(built_s, 2),
        "moved": {
            engine: moved_adapters(model, place, tokens, engine) for engine in ("fused", "opacus")
        },
    }


def _serve(pipe, row):
    try:
        pipe.send(("measured", measured(row)))
    # A row of its own process: whatever it is stands in the table, and the others go on.
    except BaseException as error:
        said = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        pipe.send(("failed", {"error": said, "traceback": traceback.format_exc()[-2000:]}))


def in_its_own_process(row, limit_s):
    """What `measured` says of a row, or why it says nothing."""
    # A forked process has the libraries already; with CUDA it may not be forked.
    context = multiprocessing.get_context("fork" if row.dry else "spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, row), daemon=True)
    started = time.perf_counter()
    process.start()
    theirs.close()
    try:
        state, figures = ours.recv() if ours.poll(limit_s) else ("out of time", {})
    except EOFError:
        state, figures = "died", {}
    process.join(5.0 if state != "out of time" else 0.0)
    if process.is_alive():
        process.kill()
        process.join()
    took = round(time.perf_counter() - started, 1)
    return {"row": row.name, **asdict(row), "state": state, "took_s": took, **figures}


def reason_to_skip(row):
    if row.base == "4bit" and find_spec("bitsandbytes") is None:
        return "bitsandbytes is not installed"
    return None


def measure_all(asked):
    """Every row in turn, within the deadline; written after each, so that a kill loses one."""
    started, found = time.monotonic(), []
    wanted = [row for row in rows(asked.dry) if not asked.only or row.name.startswith(asked.only)]
    for row in wanted:
        left = asked.deadline_s - (time.monotonic() - started)
        skipped = reason_to_skip(row) or ("no time was left" if left < 5.0 else None)
        if skipped:
            result = {"row": row.name, **asdict(row), "state": "skipped", "error": skipped}
        else:
            result = in_its_own_process(row, min(LIMITS_S[row.shape], left))
        found.append(result)
        print(f"{result['row']}: {result['state']} {result.get('error', '')}", flush=True)
        write(asked, found)
    return found


def write(asked, found):
    asked.out.mkdir(parents=True, exist_ok=True)
    report = {
        "device": "cpu, nothing is measured" if asked.dry else _gpu_name(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "rows": found,
    }
    (asked.out / "gpu.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (asked.out / "gpu.md").write_text(table(report), encoding="utf-8")


def _gpu_name():
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device"


def table(report):
    """The rows as a page shows them."""
    lines = [
        f"{report['device']}, torch {report['torch']}, transformers {report['transformers']}",
        "",
        "| row | plain LoRA | private | ratio | tokens/s | plain LoRA | private | B moved |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in report["rows"]:
        if one["state"] != "measured":
            lines.append(f"| {one['row']} | {one['state']}: {one.get('error', '')} ||||||| ")
            continue
        moved = ", ".join(f"{engine} {count}" for engine, count in one["moved"].items())
        lines.append(
            f"| {one['row']} | {one['plain_s'] * 1e3:.0f} ms | {one['private_s'] * 1e3:.0f} ms "
            f"| {one['ratio']:.2f} | {one['private_tokens_per_s']} "
            f"| {one['plain_bytes'] / 1e9:.2f} GB | {one['private_bytes'] / 1e9:.2f} GB "
            f"| {moved} |"
        )
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry", action="store_true", help="tiny shapes on the CPU")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu")
    parser.add_argument("--only", default="", help="rows whose name begins so, as '8b 4bit'")
    parser.add_argument("--deadline-s", type=float, default=DEADLINE_S)
    asked = parser.parse_args()
    if not asked.dry and not torch.cuda.is_available():
        sys.exit("measure.py: torch sees no CUDA device; --dry runs on the CPU")
    found = measure_all(asked)
    print((asked.out / "gpu.md").read_text(encoding="utf-8"))
    if any(one["state"] in ("failed", "died", "out of time") for one in found):
        sys.exit(1)


if __name__ == "__main__":
    main()
