"""Whether an engine's per-unit gradients are those of the model at hand, on made-up tokens.

A step never fails because of a record: a unit whose gradient cannot be computed adds nothing. So a
model on which an engine always fails would cost a whole budget and learn nothing. It is found here,
where nothing has been spent.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Final

import torch
from torch import Tensor

from lada_secure.dpsgd.engine import EngineName, GradientEngine, open_engine
from lada_secure.errors import LadaError, ParameterError
from lada_secure.models.adapters import trainable_parameters
from lada_secure.models.examples import TokenRow
from lada_secure.models.loading import LanguageModel
from lada_secure.models.rationale_scoring import RationaleScorer

# Unequal lengths and numbers of rows: a layer that mixes up rows or padding shows.
_UNIT_OF_ROW: Final = (0, 1, 1)
_LENGTHS: Final = (9, 5, 6)
# Relative. A base in a short type rounds every layer's gradient to 8 bits; a fault is far above.
_TOLERANCE: Final = {True: 0.01, False: 0.2}


def probe_engine(lm: LanguageModel, name: EngineName) -> None:
    """Compare per-unit gradients with autograd on each unit alone.

    Units share a forward pass where they would in training: with a float32 base.

    Args: lm: with adapters, on its device.
    Raises: ParameterError: no engine supports the model, or its gradients are other ones.
    """
    rows, scorer = _made_up(lm), RationaleScorer(lm.model, device=lm.device)
    engine = open_engine(lm.model, name, checkpoints=lm.placement.gradient_checkpointing)
    try:
        found = _unit_gradients(engine, scorer, rows)
    except (LadaError, RuntimeError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise ParameterError(
            f"engine {engine.name!r} cannot train this model: {error}; adapt other layers "
            "(target_modules), those of the attention for instance"
        ) from error
    finally:
        engine.close()
    tolerance = _TOLERANCE[scorer.is_float32]
    trained = trainable_parameters(lm.model)
    names = {one: name for name, one in lm.model.named_parameters()}
    for unit in sorted(set(_UNIT_OF_ROW)):
        alone = torch.autograd.grad(_loss(scorer, _rows_of(unit, rows)), trained, allow_unused=True)
        for parameter, each, expected in zip(trained, found, alone, strict=True):
            if not _close(each[unit], expected, tolerance):
                raise ParameterError(
                    f"engine {engine.name!r} cannot train this model: it has another gradient of "
                    f"{names[parameter]} than the model; adapt other layers (target_modules)"
                )


def _unit_gradients(
    engine: GradientEngine, scorer: RationaleScorer, rows: Sequence[TokenRow]
) -> list[Tensor]:
    """Per parameter (2, *shape)."""
    if scorer.is_float32:
        return engine.gradients(2, _UNIT_OF_ROW, partial(_loss, scorer, rows))[0]
    alone = []
    for unit in sorted(set(_UNIT_OF_ROW)):
        mine = _rows_of(unit, rows)
        alone.append(engine.gradients(1, [0] * len(mine), partial(_loss, scorer, mine))[0])
    return [torch.cat(parts) for parts in zip(*alone, strict=True)]


def _rows_of(unit: int, rows: Sequence[TokenRow]) -> list[TokenRow]:
    return [row for row, owner in zip(rows, _UNIT_OF_ROW, strict=True) if owner == unit]


def _made_up(lm: LanguageModel) -> list[TokenRow]:
    vocabulary = int(lm.model.get_input_embeddings().weight.shape[0])
    tokens = [(5 + 11 * at) % vocabulary for at in range(sum(_LENGTHS))]
    firsts = [sum(_LENGTHS[:at]) for at in range(len(_LENGTHS))]
    return [
        TokenRow(tokens=tuple(tokens[first : first + length]), target_start=2)
        for first, length in zip(firsts, _LENGTHS, strict=True)
    ]


def _loss(scorer: RationaleScorer, rows: Sequence[TokenRow]) -> Tensor:
    return -scorer(rows).sum()


def _close(found: Tensor, expected: Tensor | None, tolerance: float) -> bool:
    if expected is None:
        return not bool(found.any())
    gap = float((found - expected.float()).norm())
    return gap <= tolerance * max(float(expected.float().norm()), 1e-6)
