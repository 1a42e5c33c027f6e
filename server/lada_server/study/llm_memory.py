"""Whether the coordinator's LLM fits into its memory over a study, told before it is loaded."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from lada_secure.data.records import PoolSample
from lada_secure.method.memory import LOWER_AT_THE_COORDINATOR, llm_fits_easily, llm_memory
from lada_secure.method.plan import MethodPlan
from lada_secure.models.calling_settings import Calling
from lada_secure.models.loading import open_texts
from lada_secure.models.memory import MemoryForecast, check_memory
from lada_secure.models.placement import Placement
from lada_secure.models.preflight import TextSizes, largest_sizes

LOG = logging.getLogger(__name__)

_WHAT: Final = "the LLM"


def forecast_llm(
    plan: MethodPlan,
    pool: Sequence[PoolSample],
    folder: Path,
    *,
    calling: Calling,
    placement: Placement,
) -> MemoryForecast:
    """What the LLM will take over a study. Raises: ParameterError: the folder cannot be used."""
    sizes = _pool_sizes(plan, pool, folder, calling)
    return llm_memory(plan, folder, placement.on_this_machine(), pool=sizes)


def check_llm_memory(
    plan: MethodPlan,
    pool: Sequence[PoolSample],
    folder: Path,
    *,
    calling: Calling,
    placement: Placement,
) -> None:
    """Warn where it will only just fit.

    Raises: ParameterError: it will not, or the folder cannot be used; nothing was proposed.
    """
    there, sizes = placement.on_this_machine(), _pool_sizes(plan, pool, folder, calling)
    if llm_fits_easily(plan, folder, there, pool=sizes):
        return
    forecast = llm_memory(plan, folder, there, pool=sizes)
    check_memory(forecast, what=_WHAT, lower=LOWER_AT_THE_COORDINATOR)
    warning = forecast.warning()
    if warning is not None:
        LOG.warning("%s: %s", _WHAT, warning)


def _pool_sizes(
    plan: MethodPlan, pool: Sequence[PoolSample], folder: Path, calling: Calling
) -> TextSizes:
    texts = open_texts(folder, name=str(folder), calling=calling).with_form(plan.form)
    return largest_sizes(texts, pool)
