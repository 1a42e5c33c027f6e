"""Settings of the simulated study, and the noise that a target epsilon asks for."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache

from lada_lab.worlds.chain_world import WorldSettings
from lada_lab.worlds.wards import WardSettings
from lada_secure.allocation.statistics_parameters import StatisticsParameters, statistics_scale
from lada_secure.allocation.valuation_gains import ValuationParameters
from lada_secure.dpsgd.parameters import DpSgdParameters
from lada_secure.errors import ParameterError
from lada_secure.models.loss import LossSettings
from lada_secure.privacy.accounting.planning import (
    DpSgdRelease,
    GaussianRelease,
    PrivacyPlan,
    cost_plan,
)

MAX_ROUNDS = 5
# Noise multiplier of the training over that of one statistics release.
_TRAINING_RELATIVE_NOISE = 1.0 / 6.0
# The same of one release of data valuations.
_TRIALS_RELATIVE_NOISE = 0.5
_NEXT_TO_NO_NOISE = 1e-4
_ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True, kw_only=True)
class StudySettings:
    """Everything that all arms share; frozen before fresh seeds are run.

    quota: samples that a site may ask for in a round. private_steps: DP-SGD steps on private
    records, per round. guide_rounds: how many rounds' private steps make the guide; those of later
    rounds are taken at the end, on top of the student. own_reasons: whether records without reasons
    take part with what the model itself writes, see `own_reasons.self_generated_rationales`.
    pool_steps: steps on pool paths in a round, final_steps in the last. joint_steps, joint_weight,
    joint_learning_rate: steps in a round of arms without a guide, factor on their private gradient,
    and their rate. private_learning_rate: of the guide, largest. rate_decay: factor on it from one
    round to the next; noise_rate: largest product of the rate and the noise per expected unit, see
    `private_rate`. private_share: of the guide's update that a student starts from, see
    `guide.scaled_adapters`. least_share: of the best cell's gain that a path must reach, see
    `agreement` and `trials`. trial_gain_clip: nats per token, see `trial_gains`; trial_least_gain:
    in clips, see `trials.usefulness`. uplink_bar: how sure a student must be of an answer to offer
    it; one digit is right by luck one time in ten, and below 0.9 more than half of the offered
    paths were. uplink_first_round: the first round with an LLM transfer, at most the last; students
    know what their records say when they have ended on them. contrastive_form, contrastive_weight:
    of the LLM transfer and of arms with a contrast; all others train on cross-entropy alone.
    adapter_layers: how many layers at the top have adapters, 0 for all. batch_size: texts at a
    time, as memory allows.
    """

    rounds: int = 4
    quota: int = 30
    private_steps: tuple[int, ...] = (36, 12, 12, 12)
    guide_rounds: int = 1
    own_reasons: bool = True
    pool_steps: int = 60
    final_steps: int = 160
    expected_units: float = 200.0
    l2_clip_norm: float = 1.0
    target_delta: float = 1e-5
    max_records_per_unit: int = 4
    joint_steps: int = 60
    joint_weight: float = 0.3
    joint_learning_rate: float = 1e-2
    private_learning_rate: float = 2e-2
    noise_rate: float = 2.4e-4
    rate_decay: float = 0.5
    private_share: float = 0.5
    pool_batch_size: int = 16
    learning_rate: float = 1e-2
    own_paths: int = 5
    adapter_rank: int = 8
    adapter_targets: tuple[str, ...] = _ALL_LINEAR
    adapter_layers: int = 0
    clusters: int = 8
    difficulty_bins: int = 2
    threshold: float = 0.1
    exploration_weight: float = 0.1
    screen_low: float = 0.02
    screen_high: float = 0.98
    least_share: float = 0.25
    trial_gain_clip: float = 0.5
    trial_least_gain: float = -1.0
    contrastive_form: str = "margin"
    contrastive_weight: float = 0.1
    loss_clip: float = 4.0
    max_new_tokens: int = 12
    attempts: int = 2
    uplink_first_round: int = 3
    uplink_bar: float = 0.9
    uplink_budget: int = 60
    uplink_steps: int = 60
    uplink_learning_rate: float = 5e-4
    batch_size: int = 256
    world: WorldSettings | WardSettings = field(default_factory=WorldSettings)

    def __post_init__(self) -> None:
        if not 1 <= self.rounds <= MAX_ROUNDS:
            raise ParameterError(f"rounds: expected 1 to {MAX_ROUNDS}, got {self.rounds}")
        if len(self.private_steps) != self.rounds or min(self.private_steps) < 1:
            raise ParameterError(
                f"private_steps: expected {self.rounds} numbers >= 1, got {self.private_steps}"
            )
        if self.guide_rounds < 1:
            raise ParameterError(f"guide_rounds: expected at least 1, got {self.guide_rounds}")
        if self.quota < 1:
            raise ParameterError(f"quota: expected at least 1, got {self.quota}")
        if not (self.private_learning_rate > 0.0 and self.noise_rate > 0.0):
            raise ParameterError(
                "private_learning_rate and noise_rate: expected above 0, got "
                f"{self.private_learning_rate} and {self.noise_rate}"
            )
        if not 0.0 < self.rate_decay <= 1.0:
            raise ParameterError(f"rate_decay: expected above 0 to 1, got {self.rate_decay}")
        if self.uplink_first_round < 0:
            raise ParameterError(
                f"uplink_first_round: expected at least 0, got {self.uplink_first_round}"
            )
        if not 0.0 <= self.uplink_bar < 1.0:
            raise ParameterError(f"uplink_bar: expected 0 to below 1, got {self.uplink_bar}")
        if self.contrastive_form not in ("dpo", "margin"):
            raise ParameterError(
                f"contrastive_form: expected 'dpo' or 'margin', got {self.contrastive_form!r}"
            )

    def guide_round(self, round_id: int) -> int:
        """The round whose private steps were the last that the guide of a round is made of."""
        return min(round_id, self.guide_rounds - 1)

    def transfer_in(self, round_id: int) -> bool:
        """Whether a round ends with an LLM transfer, in arms that have any."""
        return round_id >= min(self.uplink_first_round, self.rounds - 1)

    def pool_steps_of(self, round_id: int) -> int:
        """Steps on pool paths in a round, the same in every arm that trains on any."""
        return self.final_steps if round_id + 1 == self.rounds else self.pool_steps


def loss_settings(settings: StudySettings, *, contrast: bool) -> LossSettings:
    """The loss of path distillation; without `contrast`, cross-entropy alone."""
    return LossSettings(
        contrastive_form="dpo" if settings.contrastive_form == "dpo" else "margin",
        contrastive_weight=settings.contrastive_weight if contrast else 0.0,
    )


def private_rate(settings: StudySettings, noise: Noise | None, *, round_id: int) -> float:
    """Learning rate of a guide: it falls from round to round, and stays small where noise is high.

    AdamW moves every weight by about the rate, whatever the gradient's size. Where noise makes most
    of the gradient, a rate that is right without noise carries the model far off in a few steps,
    and what it then says of paths is no longer what the records say. Small steps stay where the
    signal adds up step by step and the noise only as its root. Later rounds go on from what the
    earlier ones found: large steps would only shake it. Noise and rounds are public.
    """
    rate = settings.private_learning_rate * settings.rate_decay**round_id
    if noise is None:
        return float(rate)
    return float(min(rate, settings.noise_rate * settings.expected_units / noise.training))


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """Noise multipliers for one target epsilon; `epsilon` is what they cost in all."""

    training: float
    statistics: float
    trials: float
    sampling_probability: float
    epsilon: float


@lru_cache(maxsize=32)
def calibrated_noise(
    *,
    epsilon: float,
    delta: float,
    rounds: int,
    steps: int,
    sampling_probability: float,
    trials: bool = True,
) -> Noise:
    """The least noise for which all releases of a study together cost at most `epsilon`.

    `Noise.trials` is infinite where no valuations are paid for.
    """
    tried = GaussianRelease(
        mechanism="gaussian",
        purpose="trials",
        times=rounds,
        relative_noise=_TRIALS_RELATIVE_NOISE,
    )
    found = cost_plan(
        PrivacyPlan(
            target_epsilon=epsilon,
            target_delta=delta,
            units=1,
            release=[
                GaussianRelease(
                    mechanism="gaussian",
                    purpose="statistics",
                    times=rounds,
                ),
                DpSgdRelease(
                    mechanism="dpsgd",
                    purpose="training",
                    steps=steps,
                    sampling_probability=sampling_probability,
                    relative_noise=_TRAINING_RELATIVE_NOISE,
                ),
                *([tried] if trials else []),
            ],
        )
    )
    by_purpose = {one.purpose: one.noise_multiplier for one in found.releases}
    return Noise(
        training=by_purpose["training"],
        statistics=by_purpose["statistics"],
        trials=by_purpose.get("trials", math.inf),
        sampling_probability=sampling_probability,
        epsilon=found.epsilon,
    )


def study_noise(
    settings: StudySettings, *, epsilon: float, units: int, joint: bool = False
) -> Noise:
    """Noise for a site with about `units` units; the number is public and rounded to tens."""
    steps = settings.joint_steps * settings.rounds if joint else sum(settings.private_steps)
    rounded = max(10, 10 * round(units / 10))
    probability = min(1.0, round(settings.expected_units / rounded, 4))
    return calibrated_noise(
        epsilon=epsilon,
        delta=settings.target_delta,
        rounds=settings.rounds,
        steps=steps,
        sampling_probability=probability,
        trials=not joint,
    )


def training_parameters(
    settings: StudySettings, noise: Noise, *, steps: int, pool_gradients: str
) -> DpSgdParameters:
    """DP-SGD of so many steps."""
    return DpSgdParameters(
        noise_multiplier=noise.training,
        l2_clip_norm=settings.l2_clip_norm,
        sampling_probability=noise.sampling_probability,
        expected_units=settings.expected_units,
        steps=steps,
        pool_gradients="private" if pool_gradients == "private" else "public",
    )


def statistics_parameters(
    settings: StudySettings, noise: Noise, *, clusters: int, units: int
) -> StatisticsParameters:
    """The statistics release of a round."""
    return StatisticsParameters(
        clusters=clusters,
        loss_clip=settings.loss_clip,
        noise_multiplier=noise.statistics,
        max_units=max(units, 1) * 2,
        scale=statistics_scale(noise.statistics),
    )


def valuation_parameters(
    settings: StudySettings, noise: Noise | None, *, clusters: int
) -> ValuationParameters:
    """The release of data valuations of a round; without noise, those of the finest steps."""
    return ValuationParameters(
        clusters=clusters,
        gain_clip=settings.trial_gain_clip,
        noise_multiplier=_NEXT_TO_NO_NOISE if noise is None else noise.trials,
    )
