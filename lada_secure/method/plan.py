"""The method's part of a study plan: everything that decides what sites and LLM compute.

A study plan (`lada_protocol.plan`) adds parties, times and the identity of the pool. Fields here
are named as on the wire; docs/glossary.md says what the field calls them.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from lada_secure.allocation.gap import SampleValue
from lada_secure.canonical import canonical_json, sha256_hex
from lada_secure.data.forms import AnswerForm, FormName, answer_form
from lada_secure.data.verification import Rule, Verifier
from lada_secure.errors import LocalProtocolError, ParameterError

# Purposes of releases and of collective sums, as ledger entries and messages name them.
STATISTICS = "statistics"
DEMAND = "demand"
TRAINING = "training"
CONFIDENCE_EXCESS = "advantage"
VALUATION = "trials"

LEDGER_TIME_STEP_S = 3600

# Beyond these a step of float32 ends at zero or at infinity, whatever the data.
Positive = Annotated[float, Field(ge=1e-9, le=1e9)]
# Of adapters' learning rates and of clips, in nats a token or as a norm: what training can use.
Rate = Annotated[float, Field(ge=1e-9, le=10)]
Clip = Annotated[float, Field(ge=1e-6, le=1e4)]
NotNegative = Annotated[float, Field(ge=0, le=1e9)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
# What generators of numbers take for a seed on every platform.
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class PlanPart(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def _tuple_of_list(value: object) -> object:
    """JSON has lists only; strict models take tuples."""
    return tuple(value) if isinstance(value, list) else value


class PrivacyPlan(PlanPart):
    """The guarantee of the whole study, per site: (epsilon_cap, target_delta)-DP.

    ledger_time_step_s: the times of ledger entries are whole multiples of it, so that they do not
    say how long the work on some person's records took.
    """

    adjacency: Literal["add_or_remove_one_unit"] = "add_or_remove_one_unit"
    unit: Annotated[str, Field(min_length=1, max_length=40)]
    target_delta: Annotated[float, Field(gt=0, lt=1)]
    epsilon_cap: Positive
    max_records_per_unit: Count
    max_units: Count
    ledger_time_step_s: Annotated[int, Field(ge=1, le=86_400)] = LEDGER_TIME_STEP_S


class StatisticsPlan(PlanPart):
    """Step 3: what the histogram of clusters costs and how it is scaled to integers.

    loss_clip: nats per token.
    """

    loss_clip: Clip
    integer_scale: Count
    noise_multiplier: Positive


class TrainingPlan(PlanPart):
    """Step 9: DP-SGD. Probability and denominator are public and never come from the data."""

    noise_multiplier: Positive
    l2_clip_norm: Clip
    sampling_probability: Annotated[float, Field(ge=1e-9, le=1)]
    expected_units: Positive
    steps_per_round: Count
    pool_gradients: Literal["public", "private"]


class LearnerPlan(PlanPart):
    """What SLM and LLM alike are trained with: adapters, loss and optimiser."""

    adapter_rank: Annotated[int, Field(ge=1, le=4096)]
    adapter_layers: Annotated[int, Field(ge=1, le=4096)]
    adapter_targets: Annotated[tuple[str, ...], BeforeValidator(_tuple_of_list)]
    learning_rate: Rate
    contrastive_weight: NotNegative

    @field_validator("adapter_targets")
    @classmethod
    def _named_once(cls, targets: tuple[str, ...]) -> tuple[str, ...]:
        if not all(targets) or len(set(targets)) < len(targets):
            raise ValueError("expected names of modules, each once")
        return targets


class DistillationPlan(LearnerPlan):
    """Step 9: how the SLM learns.

    train_a: whether the A of each adapter is trained. adapter_core: whether a small matrix between
    two frozen factors is trained instead of A and B, and where these come from; None, and left out
    of the bytes, for A and B. See `lada_secure.models.adapters.AdapterSettings`.
    """

    train_a: bool
    adapter_core: Literal["seed", "weights"] | None = None
    pool_batch_size: Count
    private_weight: NotNegative
    contrastive_form: Annotated[str, Field(pattern=r"^[a-z_]{1,24}$")]

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if self.adapter_core is not None and self.train_a:
            raise ValueError(
                "distillation.adapter_core trains neither A nor B: train_a must be false with it"
            )
        return self


class ValuationPlan(PlanPart):
    """Data valuations: a second judge of the paths beside the guide, by a release of its own per
    round.

    For every cluster with received paths, a model that is trained on these alone; released is how
    much likelier it makes the private records, summed over units. gain_clip: nats per token.
    least_gain: in clips; clusters whose mean gain is below are neither asked for nor trained on,
    -1 for no such bound.
    """

    noise_multiplier: Positive
    gain_clip: Clip
    least_gain: Annotated[float, Field(ge=-1, le=1)]


class ReferenceModelPlan(PlanPart):
    """Step 9 in two parts: DP-SGD on private records alone, then public training on pool paths.

    What DP-SGD releases is a guide. It judges the paths, and the SLM is trained on those that agree
    with it, from a share of the guide's update; both are post-processing of the release.
    records_with_reasons: whether records without reasons are left out of the guide, by a rule per
    record. own_paths: what the SLM draws per sample, to compare a path with. least_share: of the
    best cell's gain that a path must reach. pool_steps, last_pool_steps: on pool paths in a round
    and in the last. pool_learning_rate: of those. `distillation.learning_rate` is the guide's in
    the first round, and rate_decay the factor on it from one round to the next. finish: whether the
    last round's DP-SGD goes on from the SLM after its pool paths, instead of from the guide.
    own_reasons: whether records without reasons take part, from the second round on, with what the
    model itself writes for them where it reaches their answer. trials: None, and left out of the
    bytes, where the guide alone judges. replay_batch_size: pool questions that each pool step
    repeats of those that the SLM answered rightly before the study, with its own paths; None, and
    left out of the bytes, for 0.
    """

    records_with_reasons: bool
    own_paths: Annotated[int, Field(ge=1, le=64)]
    least_share: Share
    rate_decay: Annotated[float, Field(gt=0, le=1)]
    private_share: Share
    pool_steps: Count
    last_pool_steps: Count
    pool_learning_rate: Rate
    finish: bool
    own_reasons: bool
    trials: ValuationPlan | None = None
    replay_batch_size: Annotated[int, Field(ge=1, le=1024)] | None = None

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if self.own_reasons and not self.records_with_reasons:
            raise ValueError(
                "guide.own_reasons needs records_with_reasons: without it bare answers take part"
            )
        return self


class AllocationPlan(PlanPart):
    """Steps 6 to 8: cells, filter, quota, and what a sample is worth within it.

    sample_value: None, and left out of the bytes, for "score"; see
    `lada_secure.allocation.gap.sample_values`. fallback, least_llm_right: likewise, for "on" and
    1/2; see `lada_secure.allocation.fallback_causes`.
    """

    strategy: Annotated[str, Field(pattern=r"^[a-z_]{1,24}$")]
    clusters: Count
    difficulty_bins: Count
    quota: Count
    threshold: Share
    exploration_weight: NotNegative
    screen_low: Share
    screen_high: Share
    sample_value: SampleValue | None = None
    fallback: Literal["on", "off"] | None = None
    least_llm_right: Share | None = None

    @property
    def cells(self) -> int:
        """Clusters by difficulty bins: columns of the private matrix."""
        return self.clusters * self.difficulty_bins


class RationalesPlan(PlanPart):
    """Step 8: how many rationales the LLM writes, how long they may be, and which one is kept.

    attempts, temperature, top_p, keep: see `lada_secure.models.rationales.Sampling`.
    """

    budget: Count
    max_new_tokens: Count
    attempts: Count
    temperature: Annotated[float, Field(gt=0, le=10)] = 0.7
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    keep: Literal["first", "shortest", "most_probable"] = "first"

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if self.keep != "first" and self.attempts < 2:
            raise ValueError(
                f"keep = {self.keep} chooses among several paths: attempts must be 2 or more, or "
                "keep first"
            )
        return self


class VerifierPlan(PlanPart):
    """When an open answer is the gold one; see `lada_secure.data.verification.Verifier`."""

    rule: Rule = "exact"
    tolerance: Annotated[float, Field(ge=0)] = 0.0

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        try:
            self.verifier()
        except ParameterError as error:
            raise ValueError(str(error)) from error
        return self

    def verifier(self) -> Verifier:
        """The rule itself."""
        return Verifier(rule=self.rule, tolerance=self.tolerance)


class TransferPlan(LearnerPlan):
    """Step 10: what the sites' models may teach the LLM, and when it is allowed to learn it.

    bar: confidence above which a model counts as knowing a sample. clip, integer_scale: how its
    excess over the bar becomes a whole number. holdout: pool samples that the LLM is never trained
    on and that judge every update. candidates: other pool samples that confidence excesses are
    computed for, at most. budget: samples that sites are asked about in a round, at most. steps: at
    most; 0 replay samples leave rehearsal out. first_round: rounds before it have no LLM transfer;
    sites know little then. last_round: whether the last round has one, though no round follows to
    use it.
    """

    bar: Annotated[float, Field(ge=0, lt=1)]
    clip: Annotated[float, Field(gt=0, le=1)]
    integer_scale: Annotated[int, Field(ge=1, le=1_000_000)]
    holdout: Count
    candidates: Count
    budget: Count
    first_round: Annotated[int, Field(ge=0)]
    last_round: bool
    steps: Count
    batch_size: Count
    replay_batch_size: Annotated[int, Field(ge=0)]
    contrastive_form: Literal["dpo", "margin"]
    # No fields: the LLM's adapters have no noise to spare them from.
    train_a: ClassVar[bool] = True
    adapter_core: ClassVar[None] = None

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if self.site_bound < 1:
            raise ValueError("integer_scale x clip is below 1: every advantage would be 0")
        return self

    @property
    def site_bound(self) -> int:
        """Largest entry of one site's confidence excesses."""
        return math.floor(self.integer_scale * self.clip)


class MethodPlan(PlanPart):
    """What one study computes. Fields that are None are left out of the bytes, never null.

    answer_form: how questions are asked and answers read, for the LLM and all SLMs.
    """

    study_id: str
    rounds: Annotated[int, Field(ge=1, le=1000)]
    embedder: Annotated[str, Field(max_length=200)]
    seed: Seed
    pool_sha256: str
    pool_size: Count
    answer_form: FormName = "cloze"
    verifier: VerifierPlan = VerifierPlan()
    privacy: PrivacyPlan
    statistics: StatisticsPlan
    training: TrainingPlan
    distillation: DistillationPlan
    allocation: AllocationPlan
    paths: RationalesPlan
    uplink: TransferPlan | None = None
    guide: ReferenceModelPlan | None = None

    @model_validator(mode="after")
    def _method_agrees(self) -> Self:
        if self.allocation.screen_low > self.allocation.screen_high:
            raise ValueError("screen_low is above screen_high")
        if self.uplink is not None and self.uplink.holdout >= self.pool_size:
            raise ValueError("uplink.holdout takes the whole pool; leave samples to learn from")
        if self.guide is not None and self.training.pool_gradients != "public":
            raise ValueError("a guide is trained without the pool: pool_gradients must be public")
        if self.guide is not None and self.guide.finish and self.rounds < 2:
            raise ValueError("guide.finish needs rounds >= 2: the rounds before it make the guide")
        return self

    @property
    def form(self) -> AnswerForm:
        """How every model of the study is asked and read."""
        return answer_form(self.answer_form, self.verifier.verifier())

    def to_bytes(self) -> bytes:
        """Canonical JSON, the form that is hashed and signed."""
        return canonical_json(self.model_dump(mode="json", exclude_none=True))

    @property
    def hash(self) -> str:
        """SHA-256 of the canonical JSON."""
        return sha256_hex(self.to_bytes())

    def transfer_in(self, round_id: int) -> TransferPlan | None:
        """The SLM-to-LLM transfer's settings where this round has one."""
        if self.uplink is None or round_id < self.uplink.first_round:
            return None
        if round_id == self.rounds - 1 and not self.uplink.last_round:
            return None
        return self.uplink

    def finishes(self, round_id: int) -> bool:
        """Whether this round's DP-SGD comes after its pool samples, on top of the SLM."""
        return self.guide is not None and self.guide.finish and round_id + 1 == self.rounds


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSplit:
    """Pool indices, ascending, that judge updates and that may be learned from; disjoint."""

    holdout: tuple[int, ...]
    candidates: tuple[int, ...]


def transfer_of(plan: MethodPlan) -> TransferPlan:
    """The plan's settings of the SLM-to-LLM transfer.

    Raises: LocalProtocolError: the plan has none; the caller asked too much.
    """
    if plan.uplink is None:
        raise LocalProtocolError(f"the plan of study {plan.study_id} has no uplink")
    return plan.uplink


def split_pool(plan: MethodPlan) -> PoolSplit:
    """Hold-out and candidates: a public function of the plan, the same at every party.

    Samples in the order of SHA-256("lada/1/uplink/" pool_sha256 "/" index): the first are held
    out, the next are candidates.
    """
    uplink = transfer_of(plan)

    def rank(index: int) -> str:
        text = f"lada/1/uplink/{plan.pool_sha256}/{index}"
        return hashlib.sha256(text.encode("ascii")).hexdigest()

    order = sorted(range(plan.pool_size), key=rank)
    last = uplink.holdout + uplink.candidates
    return PoolSplit(
        holdout=tuple(sorted(order[: uplink.holdout])),
        candidates=tuple(sorted(order[uplink.holdout : last])),
    )
