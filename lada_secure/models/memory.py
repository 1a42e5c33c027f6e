"""How much memory a model will take, told from its folder before a weight is loaded.

What lasts (the process, weights, adapters with their optimiser) is added up; of what passes (a
step, a batch of scores) the largest counts. docs/models.md has forecasts beside what was measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias

import psutil
import torch
from transformers import AutoConfig, PreTrainedModel

from lada_secure.errors import ParameterError
from lada_secure.models.checkpointing import checkpointed_layers, checkpointing
from lada_secure.models.examples import TokenRow
from lada_secure.models.folder import stored_bytes
from lada_secure.models.forward import last_log_probabilities, option_log_probabilities
from lada_secure.models.placement import Placement
from lada_secure.models.rationale_scoring import RationaleScorer
from lada_secure.models.rehearsal import Peak, Rehearsal

Bytes: TypeAlias = Mapping[str, int]

# What allocators keep of freed blocks, as shares of a computation's peak. On a CPU glibc keeps
# small ones, unless it was told not to (`allocator.give_blocks_back`); docs/models.md has figures.
_KEPT_SMALL_BLOCKS: Final = 0.33
_KEPT_BLOCKS: Final = {"cpu": 0.05, "cuda": 0.1}
# Of the libraries for matrices, once the first product was made.
_CUDA_WORKSPACE: Final = 64 * 2**20
# Above this share of what is free a forecast is a warning; it may be wrong by a fifth.
_CLOSE: Final = 0.8
# Trained numbers: value, gradient and AdamW's two moments, float32; the clipped sum, its noise and
# both together, 8 bytes each.
_TRAINED_BYTES: Final = 4 * 4 + 3 * 8
# By so much the least that a computation could take is overstated in `fits_easily`.
_GENEROUS: Final = 1000
# Of every quantized number, with its share of the scales (Dettmers et al. 2023, section 3).
_QUANTIZED_BYTES: Final = {"8bit": 1.002, "4bit": 0.5 + 0.127 / 8}


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryForecast:
    """What a model will take, in bytes.

    device: where. lasting: of everything that stays, by what it is. passing: peaks that come one at
    a time, by what is computed. loading: files that are mapped while weights are converted; the
    system takes them back when memory is short. free: what the device has left now.
    here: of `lasting`, what is there already.
    """

    device: str
    lasting: Bytes
    passing: Bytes
    loading: int
    free: int
    here: int

    @property
    def largest(self) -> tuple[str, int]:
        """The computation that takes most, and what it takes."""
        return max(self.passing.items(), key=lambda one: one[1], default=("nothing", 0))

    @property
    def working(self) -> int:
        """At the peak of work."""
        return sum(self.lasting.values()) + self.largest[1]

    @property
    def peak(self) -> int:
        """The most that the process will hold at any time, mapped files included."""
        weights = sum(size for name, size in self.lasting.items() if name in (_PROCESS, _WEIGHTS))
        return max(self.working, weights + self.loading)

    @property
    def more(self) -> int:
        """What will be needed beyond what is there already."""
        return self.working - self.here

    def sentence(self) -> str:
        """The forecast for people: what it is made of, and what is free."""
        what, size = self.largest
        parts = [f"{name} {_gigabytes(part)}" for name, part in self.lasting.items()]
        return (
            f"about {_gigabytes(self.working)} of memory on {self.device}: {', '.join(parts)}, and "
            f"at most {_gigabytes(size)} for {what}; {_gigabytes(self.free)} are free"
        )

    def fault(self) -> str | None:
        """Why it will not fit; None where it will."""
        return self.sentence() if self.more > self.free else None

    def warning(self) -> str | None:
        """That it will only just fit; None where there is room, or none at all."""
        close = _CLOSE * self.free < self.more <= self.free
        return f"memory will be short: {self.sentence()}" if close else None


_PROCESS: Final = "this process"
_WEIGHTS: Final = "weights"


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 10**8 else f"{size / 1e6:.0f} MB"


@dataclass(slots=True, kw_only=True)
class MemoryBudget:
    """Makes a forecast: a rehearsal, and what its computations take so far."""

    folder: Path
    rehearsal: Rehearsal
    passing: dict[str, int] = field(default_factory=dict)
    kept: dict[str, int] = field(default_factory=dict)

    @property
    def placement(self) -> Placement:
        """Where the model will be."""
        return self.rehearsal.placement

    def add(self, what: str, peak: Peak) -> None:
        """Take a computation in."""
        device = self.placement.torch_device.type
        if device == "cpu" and not self.placement.gradient_checkpointing:
            kept = _KEPT_SMALL_BLOCKS * peak.small
        else:
            kept = _KEPT_BLOCKS.get(device, 0.0) * peak.whole
        self.passing[what] = peak.whole + int(kept) + self._unpacked_bytes()

    def keep(self, what: str, size: int) -> None:
        """Take in something that stays."""
        self.kept[what] = self.kept.get(what, 0) + size

    def _unpacked_bytes(self) -> int:
        """A quantized layer is unpacked when it is used: the largest one, on the way back twice."""
        if self.placement.quantization is None:
            return 0
        sizes = self.rehearsal.sizes.values()
        return 2 * max((count * size for count, size, linear in sizes if linear), default=0)

    def forecast(self) -> MemoryForecast:
        """Of all that was taken in."""
        placement, trained = self.placement, sum(self.rehearsal.trained)
        weights = weight_bytes(self.rehearsal)
        lasting = {_WEIGHTS: weights}
        if trained:
            frozen = 4 * self.rehearsal.frozen_in_adapters
            lasting["adapters and their optimiser"] = trained * _TRAINED_BYTES + frozen
        lasting |= self.kept
        on_cpu = placement.device == "cpu"
        here = process_bytes() if on_cpu else 0
        lasting = (
            {_PROCESS: here, **lasting}
            if on_cpu
            else {**lasting, "CUDA's libraries": _CUDA_WORKSPACE}
        )
        return MemoryForecast(
            device="the CPU" if on_cpu else placement.device,
            lasting=lasting,
            passing=dict(self.passing),
            loading=_converted_bytes(self.folder, placement) if on_cpu else 0,
            free=free_bytes(placement),
            here=here,
        )


def fits_easily(folder: Path, placement: Placement, *, rows: int, length: int) -> bool:
    """Whether a model is so small that nothing has to be rehearsed to see that it fits.

    Its weights for every row, and for every token a hidden state and attention to all others in
    every layer and the scores of a vocabulary, all of it many times over, are less than what is
    free. A configuration without those numbers answers no.

    Args: rows, length: at least those of the largest batch.
    """
    if placement.device != "cpu" or placement.quantization is not None:
        return False
    config = AutoConfig.from_pretrained(folder, local_files_only=True).get_text_config()
    names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size")
    try:
        layers, width, heads, vocabulary = (int(getattr(config, name)) for name in names)
    except (AttributeError, TypeError, ValueError):
        return False
    token = 4 * (layers * (width + heads * length) + vocabulary)
    weights = sum(stored_bytes(folder).values())
    return _GENEROUS * (rows * length * token + weights) + rows * weights < free_bytes(placement)


def weight_bytes(rehearsal: Rehearsal) -> int:
    """Of the base model as it will lie in memory, buffers included."""
    packed = _QUANTIZED_BYTES.get(rehearsal.placement.quantization or "")
    return sum(
        count * size if packed is None or not linear else int(count * packed)
        for count, size, linear in rehearsal.sizes.values()
    )


def _converted_bytes(folder: Path, placement: Placement) -> int:
    """Of stored weights whose type will be another in memory: they are there twice for a while."""
    wanted = {"float32": "F32", "bfloat16": "BF16"}[placement.dtype]
    return sum(size for kind, size in stored_bytes(folder).items() if kind != wanted)


def process_bytes() -> int:
    """Resident memory of this process now."""
    return int(psutil.Process().memory_info().rss)


def free_bytes(placement: Placement) -> int:
    """What a device has left; with a `device_map`, all of them together."""
    if placement.device == "cpu":
        return min(int(psutil.virtual_memory().available), _left_of_group())
    devices = (
        range(torch.cuda.device_count())
        if placement.device_map is not None
        else [placement.torch_device]
    )
    return sum(int(torch.cuda.mem_get_info(one)[0]) for one in devices)


def _left_of_group() -> int:
    """What the process's control group leaves (a container's limit); without one, no limit."""
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        used = int((group / "memory.current").read_text(encoding="ascii"))
        files = dict(
            line.split() for line in (group / "memory.stat").read_text("ascii").splitlines()
        )
    except OSError:
        return 2**63
    # Pages of files that nobody has used lately are given back before anything is refused.
    return 2**63 if limit == "max" else int(limit) - used + int(files.get("inactive_file", 0))


def check_memory(forecast: MemoryForecast, *, what: str, lower: str) -> None:
    """Args: what: the model's part, for messages ("the SLM"). lower: settings that would help.

    Raises: ParameterError: it will not fit; nothing was loaded.
    """
    fault = forecast.fault()
    if fault is not None:
        raise ParameterError(f"{what} does not fit: it needs {fault}. {lower}")


def _left_padded(rows: int, length: int, device: torch.device) -> tuple[torch.Tensor, ...]:
    shape = (rows, length)
    return tuple(torch.ones(shape, dtype=torch.long, device=device) for _ in range(3))


def scoring_peak(rehearsal: Rehearsal, *, rows: int, length: int, target: int) -> Peak:
    """Of a batch of scores; see `forward.target_scores`."""

    def work(model: PreTrainedModel) -> object:
        ids, mask, positions = _left_padded(rows, length, rehearsal.placement.torch_device)
        inputs = {"input_ids": ids}
        if rehearsal.pads:
            inputs |= {"attention_mask": mask, "position_ids": positions}
        return last_log_probabilities(model, inputs, keep=min(target, length - 1))

    return rehearsal.peak_of(work)


def option_peak(
    rehearsal: Rehearsal, *, questions: int, options: int, prompt: int, option: int
) -> Peak:
    """Of a batch of questions with options; see `LanguageModel.option_log_probabilities`."""
    if not rehearsal.pads:
        return scoring_peak(rehearsal, rows=questions, length=prompt + option, target=option)

    def work(model: PreTrainedModel) -> object:
        device = rehearsal.placement.torch_device
        ids, mask, positions = _left_padded(questions, prompt, device)
        rows = torch.ones((questions * options, option), dtype=torch.long, device=device)
        owner = [at for at in range(questions) for _ in range(options)]
        return option_log_probabilities(
            model, (ids, mask, positions), rows, owner, max_tokens=prompt + option
        )

    return rehearsal.peak_of(work)


def generation_peak(rehearsal: Rehearsal, *, rows: int, prompt: int, written: int) -> Peak:
    """Of a batch of paths as they are written, with their cache; see `forward.continuations`."""

    def read(model: PreTrainedModel) -> object:
        ids, mask, positions = _left_padded(rows, prompt, rehearsal.placement.torch_device)
        with torch.inference_mode():
            return model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                use_cache=True,
                logits_to_keep=1,
            )

    with rehearsal.counting() as live:
        # Bound to a name, so that the cache lives on.
        said = read(rehearsal.model)
        cache, reading = live.now, live.peak
        del said
    vocabulary = int(rehearsal.model.config.get_text_config().vocab_size)
    # Logits as they are and in float32; sampling sorts them, with places of 8 bytes.
    choosing = rows * vocabulary * (4 + 4 + 4 + 8 + 4 + 4)
    grown = cache * (prompt + written) // max(1, prompt)
    layers = max(1, int(rehearsal.model.config.get_text_config().num_hidden_layers))
    # A layer's keys and values are copied when a token joins them.
    writing = grown + 2 * grown // layers + choosing
    # Each step makes all layers' anew, between blocks that were freed.
    return Peak(whole=max(reading.whole, writing), small=max(reading.small, grown))


def tuning_peak(rehearsal: Rehearsal, *, rows: int, length: int, cache_bytes: int) -> Peak:
    """Of a step on public examples; see `tuning.tune_on_rationales`."""
    made_up = TokenRow(tokens=(1,) * length, target_start=1)
    with rehearsal.counting():
        scorer = RationaleScorer(
            rehearsal.model, device=rehearsal.placement.torch_device, cache_bytes=cache_bytes
        )
        checkpointed = (
            checkpointed_layers(rehearsal.model)
            if rehearsal.placement.gradient_checkpointing
            else []
        )

    def work(_: PreTrainedModel) -> object:
        with checkpointing(checkpointed):
            scores = scorer([made_up] * rows)
        scores.sum().backward()  # type: ignore[no-untyped-call]
        return None

    found = rehearsal.peak_of(work)
    for one in rehearsal.model.parameters():
        one.grad = None
    return found
