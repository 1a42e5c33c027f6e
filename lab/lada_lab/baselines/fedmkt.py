"""FedMKT: selective mutual transfer by top-k logits (Fan et al. 2024, arXiv 2406.02224).

Both sides send top-k logits along texts of the public pool, aligned to the tokens of whoever
learns. *Dual minimum cross-entropy*: a site learns from the samples on which the LLM's loss is
below its own, the LLM from those on which the best site's loss is below the LLM's. Written from
the paper. Texts are the LLM's checked rationales, because a pool of bare answers has none.
"""

from __future__ import annotations

from lada_lab.baselines.logit_baseline import LogitBaseline
from lada_secure.arrays import BoolArray, FloatArray


class FedMktBaseline(LogitBaseline):
    """The `Host` of FedMKT."""

    @property
    def name(self) -> str:
        """See `Host.name`."""
        return "fedmkt"

    def worth_sending(self, teacher: FloatArray, learner: FloatArray) -> BoolArray:
        """Dual minimum cross-entropy: where the teacher's loss is the smaller one."""
        better: BoolArray = teacher < learner
        return better
