"""Outputs of frozen layers that all scorers of a model share, against computing them every time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from trainer_doubles import example, small_model

from lada_secure.arrays import FloatArray
from lada_secure.models.adapters import AdapterSettings, adapter_weights, attach_adapters
from lada_secure.models.evaluation import rationale_losses
from lada_secure.models.loading import LanguageModel
from lada_secure.models.loss import LossSettings
from lada_secure.models.rationale_scoring import frozen_outputs_shared, shared_scorer
from lada_secure.models.tuning import TuningSettings, tune_on_rationales

EXAMPLES = [example(at) for at in range(6)]
ROOM = 2**20


def settings(**changes: int) -> TuningSettings:
    values = {"steps": 3, "batch_size": 6, "replay_batch_size": 0, **changes}
    return TuningSettings(**values, learning_rate=1e-2, loss=LossSettings(contrastive_weight=0.0))


def adapted() -> LanguageModel:
    lm = small_model()
    attach_adapters(lm, AdapterSettings(rank=4, last_layers=1))
    return lm


@contextmanager
def rows_of_the_first_layer(lm: LanguageModel) -> Iterator[list[int]]:
    """How many rows each pass has taken through the lowest layer."""
    seen: list[int] = []
    handle = lm.model.model.layers[0].mlp.register_forward_hook(
        lambda _, inputs, __: seen.append(len(inputs[0]))
    )
    try:
        yield seen
    finally:
        handle.remove()


def test_losses_are_those_of_whole_passes_while_adapters_change() -> None:
    wanted: list[FloatArray] = []
    found: list[FloatArray] = []
    for share in (False, True):
        lm = adapted()
        with frozen_outputs_shared(lm.model, cache_bytes=ROOM if share else 0):
            kept = found if share else wanted
            for steps in (3, 4):
                kept.append(rationale_losses(lm, EXAMPLES, batch_size=4))
                tune_on_rationales(lm, EXAMPLES, (), settings(steps=steps, batch_size=3))
            kept.append(rationale_losses(lm, EXAMPLES, batch_size=4))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
    assert np.abs(found[0] - found[-1]).max() > 1e-3


def test_every_row_goes_through_frozen_layers_once() -> None:
    lm = adapted()
    with frozen_outputs_shared(lm.model, cache_bytes=ROOM):
        assert shared_scorer(lm.model, device=lm.device) is not None
        with rows_of_the_first_layer(lm) as seen:
            rationale_losses(lm, EXAMPLES, batch_size=4)
            first = sum(seen)
            rationale_losses(lm, EXAMPLES, batch_size=5)
            tune_on_rationales(lm, EXAMPLES, (), settings())
    assert first == len(EXAMPLES)
    # Whoever trains looks at made-up rows of its own first.
    assert all(rows == 2 for rows in seen[2:])


@pytest.mark.parametrize("room", [0, 1])
def test_without_room_or_afterwards_nothing_is_kept(room: int) -> None:
    lm = adapted()
    with (
        frozen_outputs_shared(lm.model, cache_bytes=room),
        rows_of_the_first_layer(lm) as seen,
    ):
        for _ in range(2):
            rationale_losses(lm, EXAMPLES, batch_size=6)
    assert seen.count(len(EXAMPLES)) == 2
    assert shared_scorer(lm.model, device=lm.device) is None


def test_a_model_without_frozen_layers_shares_nothing() -> None:
    lm = small_model()
    attach_adapters(lm, AdapterSettings(rank=4))
    before = adapter_weights(lm)
    with frozen_outputs_shared(lm.model, cache_bytes=ROOM):
        assert shared_scorer(lm.model, device=lm.device) is None
    assert adapter_weights(lm) == before
