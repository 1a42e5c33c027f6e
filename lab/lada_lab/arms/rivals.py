"""Which rule of choice an arm has, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lada_lab.arms.arms import Asks
from lada_lab.arms.gradient_rules import GradientAlignment
from lada_lab.arms.llm import LabLlm
from lada_lab.arms.oracle import Oracle
from lada_lab.arms.paper_filter import PaperRule
from lada_lab.arms.pool_rules import LargestGap, PoolRule
from lada_secure.privacy.release.units import Unit


def open_rule(asks: Asks, llm: LabLlm, units: Mapping[str, Sequence[Unit]]) -> PoolRule | None:
    """The rule for one study; None where the method itself chooses, or nobody does.

    Args: units: the sites' private records, by name, for the one rule that is not private.
    """
    match asks:
        case "loss-based":
            return LargestGap(llm=llm)
        case "gradient-alignment":
            return GradientAlignment(llm=llm)
        case "paper":
            return PaperRule(llm=llm)
        case "oracle":
            return Oracle(llm=llm, units=units)
        case "method" | "all" | "none":
            return None
