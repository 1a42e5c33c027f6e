"""A baseline like FedCoLLM (Fan et al. 2024, arXiv 2411.11707): one SLM shared by all sites.

Sites train adapters on their own records. Their sum is opened collectively (`adapter_sums`), so
that the server sees the mean of all sites and no site's own. The server then distils mutually
between the SLM with these adapters and its LLM, on public samples. Written from the paper, which
adds plain updates up; here each site's training is DP-SGD and paid for in its ledger.
"""

from __future__ import annotations

import numpy as np

from lada_lab.baselines.logit_baseline import LogitBaseline
from lada_secure.arrays import BoolArray, FloatArray


class FedCoLlmBaseline(LogitBaseline):
    """The `Host` of FedCoLLM's server side; the "site" is the shared SLM."""

    @property
    def name(self) -> str:
        """See `Host.name`."""
        return "fedcollm"

    def worth_sending(self, teacher: FloatArray, learner: FloatArray) -> BoolArray:
        """All of them: FedCoLLM distils on its whole auxiliary set, both ways."""
        return np.ones(np.broadcast(teacher, learner).shape, dtype=np.bool_)
