"""The conditions that are compared: what each changes in the plan that all share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from lada_lab.arms.study import ALL_LINEAR
from lada_secure.allocation.strategies import STRATEGIES
from lada_secure.canonical import Json
from lada_secure.errors import ParameterError

BaselineName: TypeAlias = Literal["fedmkt", "fedcollm"]
BASELINES: tuple[BaselineName, ...] = ("fedmkt", "fedcollm")
Asks: TypeAlias = Literal[
    "method", "loss-based", "gradient-alignment", "paper", "oracle", "all", "none"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One condition.

    changes: to the shared plan, by dotted name: what the arm is. defaults: likewise, what it sets
    unless the preset's tuning or the caller sets something else. asks: who chooses samples: the
    method by the plan's strategy; a rule that sees every sample (`lada_lab.arms.rivals`); "all" for
    every pool sample at once; "none" for no pool. baseline: whose payload and loss train the
    student; None for the method's own. ablation: run at the largest epsilon alone. private: whether
    all that it reads of records is paid for.
    """

    name: str
    summary: str
    changes: Mapping[str, Json] = field(default_factory=dict)
    defaults: Mapping[str, Json] = field(default_factory=dict)
    asks: Asks = "method"
    baseline: BaselineName | None = None
    ablation: bool = False
    private: bool = True

    @property
    def teaches_llm(self) -> bool:
        """Whether the LLM changes in this arm; both baselines are mutual."""
        return self.baseline is not None or self.changes.get("uplink") is not None


_UNSCREENED: Mapping[str, Json] = {"allocation.screen_low": 0.0, "allocation.screen_high": 1.0}


def _by(strategy: str, **changes: Json) -> dict[str, Json]:
    """A strategy alone: of samples in one cell none is worth more than another.

    changes: to the allocation beside that.
    """
    alone = {"strategy": strategy, "sample_value": None, **changes}
    return {f"allocation.{name}": value for name, value in alone.items()}


_RANDOM: Mapping[str, Json] = {**_by("random"), **_UNSCREENED}
# Records and pool samples train one model; such a study releases every round's model.
_JOINT: Mapping[str, Json] = {
    "guide": None,
    "training.steps_per_round": 60,
    "distillation.private_weight": 0.3,
    "distillation.learning_rate": 1e-2,
}
_POOL_PRIVATE: Mapping[str, Json] = {**_JOINT, "training.pool_gradients": "private"}
_TRANSFER: Json = {
    # One digit is right by luck one time in ten, and below 0.9 half of what was offered was.
    "bar": 0.9,
    "clip": 0.1,
    "integer_scale": 1000,
    # Both are shares of the pool, see below.
    "holdout": 1,
    "candidates": 1,
    "budget": 60,
    "first_round": 0,
    "last_round": True,
    "adapter_rank": 8,
    "adapter_layers": 2,
    "adapter_targets": list(ALL_LINEAR),
    "steps": 60,
    "batch_size": 16,
    "replay_batch_size": 48,
    "learning_rate": 5e-4,
    "contrastive_weight": 0.1,
    "contrastive_form": "margin",
}

# EE-Net adds both networks up; the contrast of whole rationales is the paper's, of the forms at
# hand the one that has a reference model.
_PAPER: Mapping[str, Json] = {
    "allocation.exploration_weight": 1.0,
    "distillation.contrastive_weight": 0.1,
    "distillation.contrastive_form": "dpo",
}

POOL_SHARES = {"holdout": 0.15, "candidates": 0.6}

_ALL = (
    Arm(
        name="lada-secure",
        summary="the method as it ships: noised mass x what the SLM lacks x data valuation",
    ),
    Arm(
        name="mass-valuation",
        summary="noised mass x data valuation, whatever the SLM knows",
        changes=_by("valuation"),
    ),
    Arm(
        name="topic-quotas",
        summary="quotas by noised mass, rationales screened by p",
        changes=_by("domain"),
    ),
    Arm(name="random", summary="samples at random", changes=_RANDOM),
    Arm(
        name="random-screen",
        summary="samples at random, rationales screened by p",
        changes=_by("random"),
    ),
    Arm(
        name="no-pool",
        summary="private records alone",
        changes={**_RANDOM, "guide.private_share": 1.0},
        asks="none",
    ),
    Arm(name="whole-pool", summary="every pool sample, same steps", changes=_RANDOM, asks="all"),
    Arm(
        name="loss-based",
        summary="largest gap of losses where the LLM is better (dual minimum cross-entropy)",
        changes=_RANDOM,
        asks="loss-based",
    ),
    Arm(
        name="gradient-alignment",
        summary="samples whose gradients align with a noised one of the records",
        changes=_RANDOM,
        asks="gradient-alignment",
    ),
    Arm(
        name="oracle",
        summary="not private: exact masses and data valuation, samples that suit best",
        changes=_RANDOM,
        asks="oracle",
        private=False,
    ),
    Arm(
        name="paper",
        summary="LaDa's own data filter by sample and pair, with its contrastive loss",
        changes=_RANDOM,
        defaults=_PAPER,
        asks="paper",
    ),
    Arm(
        name="paper-screen",
        summary="paper, rationales screened by p",
        changes=_by("random"),
        defaults=_PAPER,
        asks="paper",
    ),
    Arm(
        name="paper-transfer",
        summary="paper, and its filter of the other direction: the LLM learns from the sites",
        changes={**_RANDOM, "uplink": _TRANSFER},
        defaults=_PAPER,
        asks="paper",
    ),
    Arm(
        name="domain-guide",
        summary="quotas by noised mass, judged by the DP reference model alone",
        changes={**_by("valuation"), "guide.trials": None},
    ),
    Arm(
        name="no-valuation",
        summary="the DP reference model alone judges, without data valuation",
        changes={"guide.trials": None},
        ablation=True,
    ),
    Arm(
        name="no-replay",
        summary="students repeat nothing of what the SLM knew",
        changes={"guide.replay_batch_size": None},
        ablation=True,
    ),
    Arm(
        name="with-contrast",
        summary="with the contrastive term beside cross-entropy",
        changes={"distillation.contrastive_weight": 0.1},
        ablation=True,
    ),
    Arm(name="no-screen", summary="without the screen by p", changes=_UNSCREENED, ablation=True),
    *(
        Arm(
            name=f"{name}-{how}",
            summary=f"{name}, records and pool samples train one model, {summary}",
            changes={**joint, **changes},
            ablation=True,
        )
        for how, summary, joint in (
            ("joint", "pool gradients exact", _JOINT),
            ("pool-private", "pool samples through DP-SGD as well", _POOL_PRIVATE),
        )
        for name, changes in (("lada", _by("lada")), ("random", _RANDOM))
    ),
    Arm(
        name="lada-transfer",
        summary="lada-secure, and the LLM learns from the sites",
        changes={"uplink": _TRANSFER},
    ),
    *(
        arm
        for baseline in BASELINES
        for arm in (
            Arm(
                name=baseline,
                summary=f"{baseline} alone, samples at random",
                changes=_RANDOM,
                baseline=baseline,
            ),
            Arm(name=f"lada-{baseline}", summary=f"LaDa in front of {baseline}", baseline=baseline),
            Arm(
                name=f"{baseline}-topics",
                summary=f"topic-quotas in front of {baseline}",
                changes=_by("domain"),
                baseline=baseline,
            ),
        )
    ),
    Arm(
        name="fedmkt-gap",
        summary="fedmkt alone, samples with the largest gap of losses",
        changes=_RANDOM,
        asks="loss-based",
        baseline="fedmkt",
    ),
    Arm(
        name="gap-top",
        summary="topic-quotas, and only what the SLM gets wrong",
        changes=_by("domain", sample_value="gap"),
    ),
    Arm(
        name="gain-top",
        summary="topic-quotas, and samples by expected gain",
        changes=_by("domain", sample_value="gain"),
    ),
    Arm(
        name="full-gain-top",
        summary="gain-top, and topics by mass x what the SLM lacks: lada-secure without judges",
        changes=_by("gain", sample_value="gain"),
    ),
    # Every strategy alone, so that a new one can be run at once.
    *(
        Arm(name=one.name, summary=one.summary, changes=_by(one.name))
        for one in STRATEGIES.values()
        if one.name != "random"
    ),
)

ARMS = {arm.name: arm for arm in _ALL}


def arms_named(names: Sequence[str]) -> tuple[Arm, ...]:
    """Look arms up, each once, in the order asked for.

    Raises: ParameterError: none, or an unknown name.
    """
    unknown = [name for name in names if name not in ARMS]
    if unknown or not names:
        raise ParameterError(
            f"conditions: expected some of {', '.join(ARMS)}; got {', '.join(unknown) or 'none'}"
        )
    return tuple(ARMS[name] for name in dict.fromkeys(names))
