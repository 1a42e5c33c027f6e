"""Gradients of small models on a CUDA device: by plain LoRA under autograd, and by an engine."""

from __future__ import annotations

import torch

from lada_secure.dpsgd.engine import open_engine
from lada_secure.models.examples import encode_row
from lada_secure.models.rationale_scoring import RationaleScorer

CUDA = torch.device("cuda")


def relative_distance(found, wanted):
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def _rows(lm, units):
    rows = [encode_row(lm, one.prompt, one.path) for unit in units for one in unit.examples]
    return rows, [at for at, unit in enumerate(units) for _ in unit.examples]


def gradient_by_plain_lora(lm, units):
    """Sum of all units' gradients, (d,) on the device; peft's own forward pass, row by row."""
    trained = [one for one in lm.model.parameters() if one.requires_grad]
    rows, _ = _rows(lm, units)
    for row in rows:
        tokens = torch.tensor([row.tokens], device=CUDA)
        logits = lm.model(input_ids=tokens).logits[0, row.target_start - 1 : -1]
        torch.nn.functional.cross_entropy(
            logits.float(), tokens[0, row.target_start :], reduction="sum"
        ).backward()
    return torch.cat([one.grad.flatten() for one in trained])


def gradient_by_engine(lm, units, *, engine, checkpoints=False):
    """The same by per-unit gradients of one padded batch."""
    opened = open_engine(lm.model, engine, checkpoints=checkpoints)
    scorer = RationaleScorer(lm.model, device=CUDA)
    rows, unit_of_row = _rows(lm, units)
    taken, _ = opened.gradients(len(units), unit_of_row, lambda: (-scorer(rows)).sum())
    opened.close()
    assert all(one.dtype == torch.float32 and one.is_cuda for one in taken)
    assert all(one.shape[0] == len(units) for one in taken)
    return torch.cat([one.sum(0).flatten() for one in taken])
