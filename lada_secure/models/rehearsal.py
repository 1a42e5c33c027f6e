"""Computations rehearsed without numbers, to count the memory that they will take.

The model's own code runs on tensors that have a shape, a type and a device but no storage; what
would be allocated and freed on the way is added up. So the count follows whatever an architecture,
an attention kernel or gradient checkpointing does, and no table of formulas has to be kept true.

Counted are the tensors that torch's dispatcher sees. Work space inside a kernel is not.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from lada_secure.models.adapters import AdapterSettings, adapted_model
from lada_secure.models.loading import carries_state, quiet_transformers, unreadable
from lada_secure.models.placement import Placement

_aten = torch.ops.aten
# Asked whether tensors agree: a rehearsal takes the way of a model that is as it should be.
_COMPARISONS = (_aten.allclose.default, _aten.equal.default)


# glibc's largest threshold (mallopt(3), M_MMAP_THRESHOLD): larger blocks go back when freed.
_LARGE_BLOCK_BYTES: Final = 32 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """The most bytes that were alive at a time: of all tensors, and of those below 32 MiB."""

    whole: int
    small: int


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of the tensors that are alive, and the most there were, while it is active.

    Answers a program that asks for a number with 1, and one that asks for a truth with yes.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self._small_now = 0
        self._peak = 0
        self._small_peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, _types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is _aten._local_scalar_dense.default:
            kind = args[0].dtype
            return True if kind == torch.bool else 1.0 if kind.is_floating_point else 1
        if func in _COMPARISONS:
            return True
        found = func(*args, **(kwargs or {}))
        for one in tree_iter(found):
            if isinstance(one, Tensor):
                self._note(one)
        if func is _aten.logsumexp.default:
            # Its kernel makes one tensor of its input's size.
            size = args[0].numel() * args[0].element_size()
            self._took(size)
            self._took(-size)
        return found

    @property
    def peak(self) -> Peak:
        """The most there were so far."""
        return Peak(whole=self._peak, small=self._small_peak)

    def know(self, tensors: Iterator[Tensor]) -> None:
        """Leave out what is there already."""
        for one in tensors:
            self._seen.add(one.untyped_storage()._cdata)

    def _note(self, one: Tensor) -> None:
        storage = one.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self._took(size)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self._took(-size)

    def _took(self, size: int) -> None:
        self.now += size
        if abs(size) < _LARGE_BLOCK_BYTES:
            self._small_now += size
        self._peak = max(self._peak, self.now)
        self._small_peak = max(self._small_peak, self._small_now)


class Rehearsal:
    """A model without numbers, on which computations are counted.

    model: as it would be loaded from `folder` to `placement`, without quantization. Its parameters
    and buffers are there before anything is counted.
    """

    def __init__(
        self, folder: Path, placement: Placement, adapters: AdapterSettings | None = None
    ) -> None:
        """Raises: ParameterError: the folder's configuration makes no model."""
        self.placement = placement
        try:
            with quiet_transformers(), torch.device("meta"):
                config = AutoConfig.from_pretrained(folder, local_files_only=True)
                model = AutoModelForCausalLM.from_config(config, dtype=placement.torch_dtype)
                model.eval()
        except Exception as error:
            raise unreadable(folder, error) from error
        # As `LanguageModel.pads`.
        self.pads = not carries_state(model)
        # Of weights alone; adapters do not count.
        self.sizes = {
            name: (one.numel(), one.element_size(), _is_linear(model, name))
            for name, one in (*model.named_parameters(), *model.named_buffers())
        }
        if adapters is not None:
            model = adapted_model(model, adapters)
        else:
            # Without adapters nothing is trained: the base model is frozen.
            model.requires_grad_(False)
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.model: PreTrainedModel = model
        _give_device(model, placement.torch_device, self._mode)

    @property
    def trained(self) -> tuple[int, ...]:
        """Numbers of each trained parameter."""
        return tuple(one.numel() for one in self.model.parameters() if one.requires_grad)

    @property
    def frozen_in_adapters(self) -> int:
        """Numbers of the adapters that are not trained."""
        named = self.model.named_parameters()
        return sum(one.numel() for name, one in named if "lora_" in name and not one.requires_grad)

    @contextmanager
    def counting(self) -> Iterator[LiveBytes]:
        """Count what is computed within; tensors that are made within have no numbers."""
        live = LiveBytes()
        live.know(iter((*self.model.parameters(), *self.model.buffers())))
        with self._mode, live:
            yield live

    def peak_of(self, work: Callable[[PreTrainedModel], object]) -> Peak:
        """The most that a computation takes on top of the model."""
        with self.counting() as live:
            work(self.model)
            return live.peak


def layer_count(folder: Path) -> int:
    """How many layers the model of a folder has."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    return int(config.num_hidden_layers)


def _is_linear(model: nn.Module, parameter: str) -> bool:
    """Whether a weight would be quantized: of a linear layer, and not of the head."""
    owner, _, name = parameter.rpartition(".")
    module = model.get_submodule(owner)
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    return name == "weight" and isinstance(module, nn.Linear) and module is not head


def _give_device(model: nn.Module, device: torch.device, mode: FakeTensorMode) -> None:
    """Let every parameter and buffer be on a device, still without numbers; ties stay ties."""
    made: dict[int, tuple[Tensor, Tensor]] = {}

    def moved(one: Tensor) -> Tensor:
        if id(one) not in made:
            with mode:
                empty = torch.empty(one.shape, dtype=one.dtype, device=device)
                if isinstance(one, nn.Parameter):
                    empty = nn.Parameter(empty, requires_grad=one.requires_grad)
            made[id(one)] = (one, empty)
        return made[id(one)][1]

    for module in model.modules():
        for kept in (module._parameters, module._buffers):
            for name, one in kept.items():
                if one is not None:
                    kept[name] = moved(one)  # type: ignore[assignment]
