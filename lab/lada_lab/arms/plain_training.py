"""Training without any privacy, for the arms that say what privacy costs.

The shipped trainer with its sampling, loss, engine and optimiser; the private gradient is neither
clipped nor noised. Nothing here may ever run on real records, so it lives with the benchmark.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lada_secure.dpsgd.parameters import DpSgdParameters, TrainerSettings
from lada_secure.dpsgd.trainer import Trainer
from lada_secure.models.examples import PrivateUnit, RationaleExample
from lada_secure.models.loading import LanguageModel


class _PlainTrainer(Trainer):
    def step(self) -> float | None:
        """Sample units, add their gradients up as they are, update."""
        examples = [one for unit in self.draw() for one in unit.examples]
        plain = self.source.public_gradient(examples, count=1)
        flat: Tensor = torch.cat([one.flatten() for one in plain.gradients]).double()
        return self.update(flat * self._settings.private_weight / self._privacy.expected_units)


def train_without_privacy(
    lm: LanguageModel,
    *,
    units: Sequence[PrivateUnit],
    pool: Sequence[RationaleExample],
    steps: int,
    expected_units: float,
    settings: TrainerSettings,
) -> None:
    """Train the adapters in place on exact gradients, private and public."""
    threads = torch.get_num_threads()
    torch.set_num_threads(settings.threads or threads)
    trainer = _PlainTrainer(
        lm,
        pool=pool,
        # Its noise is never drawn: `step` is replaced. Sampling and steps are used.
        privacy=DpSgdParameters(
            noise_multiplier=1.0,
            l2_clip_norm=1.0,
            sampling_probability=min(1.0, expected_units / max(len(units), 1)),
            expected_units=expected_units,
            steps=steps,
            pool_gradients="public",
        ),
        settings=settings,
    )
    try:
        trainer.take_units(units)
        for _ in range(steps):
            trainer.step()
    finally:
        trainer.close()
        torch.set_num_threads(threads)
