"""A study of the laboratory that is over in a second."""

from __future__ import annotations

SEED = 7
# Two rounds of three picks per site, on 36 records a site and 50 pool samples.
CHANGES = (
    "rounds=2",
    "allocation.quota=3",
    "allocation.clusters=4",
    "allocation.threshold=0.01",
    "training.steps_per_round=2",
    # Every unit in every step: its noise is quick to calibrate.
    "training.expected_units=60.0",
    "distillation.pool_batch_size=4",
    "distillation.adapter_rank=2",
    'distillation.adapter_targets=["q_proj", "v_proj"]',
    "guide.own_paths=1",
    "guide.pool_steps=2",
    "guide.last_pool_steps=3",
    "paths.budget=9",
    "paths.attempts=1",
    # Its models know little and its sites have few records, on purpose.
    'allocation.fallback="off"',
    "world.private=36",
    "world.pool=50",
)
