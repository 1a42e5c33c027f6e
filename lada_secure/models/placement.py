"""Where a model's weights lie and in which form; light to import, for settings files.

The base model is frozen, so its numbers may be short or packed: that loses some of what the model
knows and none of what is trained. Adapters, gradients, clipping and noise are float32 or wider in
every placement.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from lada_secure.errors import ParameterError
from lada_secure.ranges import one_of

if TYPE_CHECKING:
    import torch

Dtype: TypeAlias = Literal["float32", "bfloat16"]
Quantization: TypeAlias = Literal["8bit", "4bit"]
DeviceMap: TypeAlias = Literal["auto"]
DEVICE_PATTERN: Final = r"auto|cpu|cuda(:\d{1,3})?"
_DTYPES: Final[tuple[Dtype, ...]] = ("float32", "bfloat16")
_QUANTIZATIONS: Final[tuple[Quantization, ...]] = ("8bit", "4bit")


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where a model's weights lie and in which form.

    device: "auto" takes CUDA where there is one; "cpu", "cuda" or "cuda:N".
    dtype: of the frozen base and of its forward pass. Adapters are float32 in both.
    quantization: of the linear layers of the frozen base, by bitsandbytes, on CUDA alone; what is
    computed with them is of `dtype`.
    device_map: "auto" spreads the layers of the frozen base over all CUDA devices.
    gradient_checkpointing: a step keeps the inputs of layers alone and computes each layer again on
    the way back: less memory, about a third more time.
    """

    device: str = "auto"
    dtype: Dtype = "float32"
    quantization: Quantization | None = None
    device_map: DeviceMap | None = None
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        if re.fullmatch(DEVICE_PATTERN, self.device) is None:
            raise ParameterError(
                f"device: expected auto, cpu, cuda or cuda:N, as cuda:1, got {self.device!r}"
            )
        one_of(_DTYPES, dtype=self.dtype)
        if self.quantization is not None:
            one_of(_QUANTIZATIONS, quantization=self.quantization)
        if self.device_map is not None:
            one_of(("auto",), device_map=self.device_map)
            if self.device not in ("auto", "cuda"):
                raise ParameterError(
                    f"device_map and device: device_map spreads a model over all CUDA devices, "
                    f"device names {self.device!r}; leave one of them out"
                )

    def on_this_machine(self) -> Placement:
        """The same with its device chosen, once this machine can do all of it.

        Loads nothing and reserves no memory on a device.

        Raises: ParameterError: what of it this machine cannot do, and what to do instead.
        """
        import torch

        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        device = self.device
        if device == "auto":
            device = "cuda" if found else "cpu"
        if device != "cpu" and int(device.partition(":")[2] or 0) >= found:
            raise ParameterError(
                f"device: {device!r}, but torch sees {found or 'no'} CUDA devices; use "
                'device = "auto" or "cpu"'
            )
        if self.device_map is not None and found < 2:
            raise ParameterError(
                "device_map: a model is spread over at least two CUDA devices, torch sees "
                f"{found or 'none'}; leave device_map out"
            )
        if self.quantization is not None:
            self._check_quantization(device)
        return replace(self, device=device)

    def _check_quantization(self, device: str) -> None:
        if device == "cpu":
            raise ParameterError(
                f"quantization: {self.quantization} weights are computed with on CUDA devices "
                'alone, and this model is for the CPU; use dtype = "bfloat16", which halves the '
                "weights, or a smaller model"
            )
        if find_spec("bitsandbytes") is None:
            raise ParameterError(
                f"quantization: {self.quantization} weights need the library bitsandbytes, which "
                "is not installed; install lada-secure with the extra 'quantized'"
            )

    @property
    def torch_device(self) -> torch.device:
        """The device of a placement `on_this_machine`; with a `device_map`, of the first layer."""
        import torch

        return torch.device(self.device)

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype`, for torch."""
        import torch

        return torch.bfloat16 if self.dtype == "bfloat16" else torch.float32


ON_CPU: Final = Placement(device="cpu")
