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

from lada_secure.dpsgd.engine import EngineName, open_engine
from lada_secure.errors import LadaError, ParameterError
from lada_secure.models.adapters import trainable_parameters
from lada_secure.models.examples import TokenRow
from lada_secure.models.loading import LanguageModel
from lada_secure.models.rationale_scoring import RationaleScorer

# Unequal lengths and numbers of rows: a layer that mixes up rows or padding shows.
_UNIT_OF_ROW: Final = (0, 1, 1)
_LENGTHS: Final = (9, 5, 6)
_TOLERANCE: Final = 0.01


def probe_engine(lm: LanguageModel, name: EngineName) -> None:
    """Compare per-unit gradients with autograd on each unit alone.

    Args: lm: with adapters, on its device.
    Raises: ParameterError: no engine supports the model, or its gradients are other ones.
    """
    rows, scorer = _made_up(lm), RationaleScorer(lm.model, device=lm.model.device)
    engine = open_engine(lm.model, name)
    try:
        found, _ = engine.gradients(2, _UNIT_OF_ROW, partial(_loss, scorer, rows))
    except (LadaError, RuntimeError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise ParameterError(
            f"engine {engine.name!r} cannot train this model: {error}; adapt other layers "
            "(target_modules), those of the attention for instance"
        ) from error
    finally:
        engine.close()
    trained = trainable_parameters(lm.model)
    names = {one: name for name, one in lm.model.named_parameters()}
    for unit in sorted(set(_UNIT_OF_ROW)):
        mine = [row for row, owner in zip(rows, _UNIT_OF_ROW, strict=True) if owner == unit]
        alone = torch.autograd.grad(_loss(scorer, mine), trained, allow_unused=True)
        for parameter, each, expected in zip(trained, found, alone, strict=True):
            if not _close(each[unit], expected):
                raise ParameterError(
                    f"engine {engine.name!r} cannot train this model: it has another gradient of "
                    f"{names[parameter]} than the model; adapt other layers (target_modules)"
                )


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


def _close(found: Tensor, expected: Tensor | None) -> bool:
    if expected is None:
        return not bool(found.any())
    gap = float((found - expected.float()).norm())
    return gap <= _TOLERANCE * max(float(expected.float().norm()), 1e-6)
