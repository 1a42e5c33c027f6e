"""Data valuations on a CUDA device say of the records what they say on the CPU."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

# Of the ledger, whose release the gains go through, and of its noise.
pytest.importorskip("dp_accounting")
pytest.importorskip("cryptography")
pytest.importorskip("pydantic")

from trainer_doubles import example, small_model

from lada_secure.allocation.measurement import measured_gains, valuation_student
from lada_secure.allocation.valuation_gains import ValuationParameters, unit_gains
from lada_secure.data.records import Record
from lada_secure.models.adapters import AdapterSettings, adapter_weights, attach_adapters
from lada_secure.models.loss import LossSettings
from lada_secure.models.tuning import TuningSettings
from lada_secure.privacy.release.units import Unit

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

PUBLIC = ValuationParameters(clusters=2, gain_clip=2.0, noise_multiplier=1.0)
WORDS = {0: "good", 1: "evil"}
UNITS = tuple(
    Unit(
        unit_id=f"u{number}",
        records=(
            Record(
                record_id=f"r{number}",
                unit=f"u{number}",
                question=f"question {number}",
                choices=(),
                answer=str(number % 10),
                rationale="good",
            ),
        ),
    )
    for number in range(24)
)


def gains(device: str) -> np.ndarray:
    """Mean gain of every cluster in clips, everything computed on one device."""
    lm = small_model()
    attach_adapters(lm, AdapterSettings(rank=4))
    lm.model.to(device)
    reference = adapter_weights(lm)
    students = {
        cluster: valuation_student(
            lm,
            [
                replace(example(at), prompt=f"question {at}\n", path=f"{word}\n{at}", rejected=None)
                for at in (5, 6, 7)
            ],
            (),
            reference=reference,
            tuning=TuningSettings(
                steps=20,
                batch_size=3,
                replay_batch_size=0,
                learning_rate=1e-2,
                max_epochs=100,
                loss=LossSettings(contrastive_weight=0.0),
            ),
        )
        for cluster, word in WORDS.items()
    }
    assert lm.model.device.type == device
    measured = measured_gains(
        lm, UNITS, students, reference=reference, clusters=PUBLIC.clusters, batch_size=8
    )
    found = unit_gains(measured, PUBLIC)
    return found[:-1] / found[-1]


def test_trials_are_the_same_on_both_devices() -> None:
    slow, fast = gains("cpu"), gains("cuda")
    assert slow[0] > slow[1] + 0.1
    # Twenty steps of AdamW on other kernels: alike, not equal.
    assert np.abs(fast - slow).max() < 0.05
