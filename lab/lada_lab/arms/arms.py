"""The conditions that are compared: what each arm may know and how it chooses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from lada_secure.errors import ParameterError

Privacy: TypeAlias = Literal["dp", "none"]
HostName: TypeAlias = Literal["fedmkt", "fedcollm"]
HOSTS: tuple[HostName, ...] = ("fedmkt", "fedcollm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One condition.

    strategy: a key of `learnability.allocation.STRATEGIES`, "loss-based" (dual minimum
    cross-entropy, Fan et al. 2024), "all" (every pool sample) or "none" (no pool at all).
    screened: drop received paths outside the band of p. guided: drop received paths that disagree
    with the private records by the guide, and value cells by it. trials: decide by data valuations,
    and by the guide only where there was none. clustering_start: quotas by
    noised mass in round 0. exploration, contrast: whether the term takes part. private_share: of
    the guide's update that students start from, None for the study's. late: no guide; students
    start from the reference model and take all private steps at the end. joint: no guide; private
    records and pool paths train one model, pool gradients exact or through DP-SGD. uplink: the LLM
    learns from the sites. ablation: run at the largest epsilon alone. host: whose payload and loss
    train the student; None: distillation of paths.
    """

    name: str
    summary: str
    strategy: str
    screened: bool = False
    guided: bool = False
    trials: bool = False
    clustering_start: bool = True
    exploration: bool = True
    contrast: bool = False
    privacy: Privacy = "dp"
    joint: Literal["public", "private"] | None = None
    uplink: bool = False
    private_share: float | None = None
    late: bool = False
    ablation: bool = False
    host: HostName | None = None

    @property
    def teaches_llm(self) -> bool:
        """Whether the LLM changes in this arm; both baselines are mutual."""
        return self.uplink or self.host is not None


_LADA = Arm(
    name="lada-secure",
    summary="the full method under differential privacy",
    strategy="guided",
    screened=True,
    guided=True,
    trials=True,
)

_ALL = (
    Arm(name="no-pool", summary="private records alone", strategy="none"),
    Arm(name="random", summary="samples at random", strategy="random"),
    Arm(
        name="random-screen",
        summary="samples at random, paths screened by p",
        strategy="random",
        screened=True,
    ),
    Arm(
        name="domain-screen",
        summary="quotas by noised mass, paths screened by p",
        strategy="domain",
        screened=True,
    ),
    Arm(
        name="domain-late",
        summary="domain-screen without a guide, all private steps at the end",
        strategy="domain",
        screened=True,
        late=True,
    ),
    Arm(name="whole-pool", summary="every pool sample, same steps", strategy="all"),
    Arm(
        name="loss-based",
        summary="largest gap of losses where the LLM is better (dual minimum cross-entropy)",
        strategy="loss-based",
    ),
    Arm(name="paper", summary="largest predicted change of exp(-loss)", strategy="paper"),
    Arm(
        name="band",
        summary="learnability band x noised mass x filter, paths screened by p, no guide",
        strategy="lada",
        screened=True,
    ),
    _LADA,
    replace(
        _LADA,
        name="lada-nonprivate",
        summary="the full method without privacy",
        privacy="none",
    ),
    Arm(
        name="random-nonprivate",
        summary="samples at random, without privacy",
        strategy="random",
        privacy="none",
    ),
    replace(
        _LADA,
        name="no-trials",
        summary="the guide alone decides, without path trials",
        ablation=True,
        trials=False,
    ),
    replace(
        _LADA,
        name="no-exploration",
        summary="without exploration",
        ablation=True,
        exploration=False,
    ),
    replace(
        _LADA,
        name="with-contrast",
        summary="with the contrastive term beside cross-entropy",
        ablation=True,
        contrast=True,
    ),
    replace(
        _LADA,
        name="no-clustering",
        summary="without the clustering start",
        ablation=True,
        clustering_start=False,
    ),
    replace(
        _LADA, name="no-screen", summary="without both path screens", ablation=True, screened=False
    ),
    Arm(
        name="lada-joint",
        summary="band, both gradient streams in one model, pool gradients exact",
        strategy="lada",
        screened=True,
        joint="public",
        ablation=True,
    ),
    Arm(
        name="random-joint",
        summary="random, both gradient streams in one model, pool gradients exact",
        strategy="random",
        joint="public",
        ablation=True,
    ),
    Arm(
        name="lada-pool-private",
        summary="band, pool samples through DP-SGD as well",
        strategy="lada",
        screened=True,
        joint="private",
        ablation=True,
    ),
    Arm(
        name="random-pool-private",
        summary="random, pool samples through DP-SGD as well",
        strategy="random",
        joint="private",
        ablation=True,
    ),
    replace(_LADA, name="lada-uplink", summary="with the uplink to the LLM", uplink=True),
)

_HOSTED = (
    *(
        arm
        for host in HOSTS
        for arm in (
            Arm(
                name=host, summary=f"{host} alone, samples at random", strategy="random", host=host
            ),
            replace(_LADA, name=f"lada-{host}", summary=f"LaDa in front of {host}", host=host),
        )
    ),
    Arm(
        name="fedmkt-gap",
        summary="fedmkt alone, samples with the largest gap of losses",
        strategy="loss-based",
        host="fedmkt",
    ),
)

ARMS = {arm.name: arm for arm in (*_ALL, *_HOSTED)}


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
