"""Which engine trains a model."""

from __future__ import annotations

from torch import nn

from lada_secure.dpsgd.engine import EngineName, GradientEngine, trainable_parameters
from lada_secure.dpsgd.engine_fused import FusedEngine, fused_obstacle
from lada_secure.dpsgd.engine_opacus import OpacusEngine, opacus_obstacle
from lada_secure.errors import ParameterError


def open_engine(model: nn.Module, name: EngineName) -> GradientEngine:
    """Attach an engine to a model; "auto" takes `fused` where it applies and else `opacus`.

    Raises: ParameterError: no trainable parameter, an unknown name, or a module with trainable
    parameters that the engine (with "auto": neither engine) supports; the message names it.
    """
    trainable_parameters(model)
    if name not in ("auto", "fused", "opacus"):
        raise ParameterError(f"engine: expected 'auto', 'fused' or 'opacus', got {name!r}")
    not_fused = None if name == "opacus" else fused_obstacle(model)
    if name != "opacus" and not_fused is None:
        return FusedEngine(model)
    if name == "fused":
        raise ParameterError(f"engine 'fused' cannot train this model: {not_fused}")
    not_opacus = opacus_obstacle(model)
    if not_opacus is None:
        return OpacusEngine(model)
    neither = f"; engine 'fused' neither: {not_fused}" if name == "auto" else ""
    raise ParameterError(f"engine 'opacus' cannot train this model: {not_opacus}{neither}")
