"""The conditions that are compared: what each arm may know and how it chooses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from lada_secure.errors import ParameterError

Privacy = Literal["dp", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One condition.

    strategy: a key of `learnability.allocation.STRATEGIES`, "loss-based" (dual minimum
    cross-entropy, Fan et al. 2024), "all" (every pool sample) or "none" (no pool at all).
    screened: drop received paths outside the band of p. guided: drop received paths that disagree
    with the private records by the guide, and value cells by it. clustering_start: quotas by
    noised mass in round 0. exploration, contrast: False switches the term off. private_share: of
    the guide's update that students start from, None for the study's. ablation: run at the largest
    epsilon alone.
    """

    name: str
    summary: str
    strategy: str
    screened: bool = False
    guided: bool = False
    clustering_start: bool = True
    exploration: bool = True
    contrast: bool = True
    privacy: Privacy = "dp"
    pool_gradients: Literal["public", "private"] = "public"
    uplink: bool = False
    private_share: float | None = None
    ablation: bool = False


_LADA = Arm(
    name="lada-secure",
    summary="the full method under differential privacy",
    strategy="guided",
    screened=True,
    guided=True,
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
        name="no-exploration",
        summary="without exploration",
        ablation=True,
        exploration=False,
    ),
    replace(
        _LADA,
        name="no-contrast",
        summary="without the contrastive term",
        ablation=True,
        contrast=False,
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
    replace(
        _LADA,
        name="lada-pool-private",
        summary="pool samples through DP-SGD as well",
        pool_gradients="private",
    ),
    Arm(
        name="random-pool-private",
        summary="random, pool samples through DP-SGD as well",
        strategy="random",
        pool_gradients="private",
    ),
    replace(_LADA, name="lada-uplink", summary="with the uplink to the LLM", uplink=True),
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
