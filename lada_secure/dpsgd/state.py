"""State of a training run between two chunks of steps, as bytes.

The ledger stores it as the output of the chunk that paid for it, so an interrupted run goes on
from the last chunk that was committed, and takes the steps after it again under the reservation
that paid for them. It holds adapters and Adam moments, functions of noised gradients and public
data, and no randomness: a resumed run can only draw afresh.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from lada_secure.errors import ParameterError

_FORMAT: Final = "lada-training/1"
_LENGTH_BYTES: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingState:
    """`binding` is a hash of everything that must be the same for going on.

    public_losses: mean pool loss of each step that was done, None where there was none.
    tensors: "<index>.value" and optimiser moments "<index>.<name>" of every trainable parameter.
    """

    binding: str
    public_losses: tuple[float | None, ...]
    tensors: dict[str, Tensor]

    @property
    def step(self) -> int:
        """Steps done."""
        return len(self.public_losses)


def encode_state(state: TrainingState) -> bytes:
    """Bytes of a state: length of the header, JSON header, safetensors."""
    header = json.dumps(
        {"format": _FORMAT, "binding": state.binding, "public_losses": state.public_losses},
        sort_keys=True,
    ).encode()
    return len(header).to_bytes(_LENGTH_BYTES, "big") + header + save_safetensors(state.tensors)


def decode_state(raw: bytes, *, binding: str) -> TrainingState:
    """Read what `encode_state` wrote.

    Raises: ParameterError: damaged, or of another run (plan, settings, examples, first weights).
    """
    found = read_state(raw)
    if found.binding != binding:
        raise ParameterError(
            "stored training state belongs to another run: its parameters, settings, examples or "
            "first weights differ; use another round_id, or restore what was there before"
        )
    return found


def read_state(raw: bytes) -> TrainingState:
    """The same for whoever only looks at a run that is over. Raises: ParameterError: damaged."""
    end = _LENGTH_BYTES + int.from_bytes(raw[:_LENGTH_BYTES], "big")
    try:
        header = json.loads(raw[_LENGTH_BYTES:end])
        tensors: dict[str, Tensor] = load_safetensors(raw[end:])
        if header["format"] != _FORMAT:
            raise ValueError("unknown format")
        losses = tuple(None if one is None else float(one) for one in header["public_losses"])
        bound_to = str(header["binding"])
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ParameterError(f"stored training state cannot be read: {error}") from error
    return TrainingState(binding=bound_to, public_losses=losses, tensors=tensors)
