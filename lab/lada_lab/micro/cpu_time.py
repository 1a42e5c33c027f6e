"""What the encryption benchmarks share: CPU time with medians, and the baseline's CKKS context.

CPU time instead of wall time: on a machine that others use, wall time measures them. Baseline
and candidate alternate within one run, so a change of clock frequency meets both.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, ParamSpec, TypeVar

from lada_secure.encryption.workers.process import WorkerProcess

BASELINE_DEGREE: Final = 8192
BASELINE_SCALE: Final = 2.0**40

Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")


@dataclass(slots=True)
class Stopwatch:
    """Collects CPU seconds by name.

    `workers` must be started before the first measurement, or their start is measured too.
    """

    workers: Sequence[WorkerProcess]
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def measure(
        self,
        name: str,
        work: Callable[Arguments, Result],
        /,
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> Result:
        """Run `work` once with its arguments and file its CPU time under `name`."""
        before = self._now()
        result = work(*args, **kwargs)
        self.seconds.setdefault(name, []).append(self._now() - before)
        return result

    def median(self, name: str) -> float:
        """Median of what was filed under `name`, in seconds."""
        return statistics.median(self.seconds[name])

    def ratio(self, candidate: str, baseline: str) -> float:
        """Median of the candidate over median of the baseline."""
        return self.median(candidate) / self.median(baseline)

    def _now(self) -> float:
        # Asking a worker costs some 0.05 ms, counted against the candidate only.
        return time.process_time() + sum(worker.cpu_seconds() for worker in self.workers)


def baseline_context(coeff_modulus_bits: Sequence[int]) -> Any:
    """TenSEAL's CKKS as it is usually set up: N = 8192, scale 2^40, one thread."""
    import tenseal

    context = tenseal.context(
        tenseal.SCHEME_TYPE.CKKS,
        BASELINE_DEGREE,
        coeff_mod_bit_sizes=list(coeff_modulus_bits),
        n_threads=1,
    )
    context.global_scale = BASELINE_SCALE
    return context
