"""Whether a site's SLM fits into its memory over a whole study, told before a weight is loaded.

Only lengths of records are looked at, and what is said of them stays on the site's own screen.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

from lada_clients.net.failures import told_as
from lada_clients.site.gates.files import SiteFiles
from lada_clients.site.settings import SiteSettings
from lada_protocol.failure_codes import FailureCode
from lada_secure.data.records import PoolSample
from lada_secure.errors import ParameterError
from lada_secure.method.memory import LOWER_AT_A_SITE, SiteSizes, site_fits_easily, site_memory
from lada_secure.method.plan import MethodPlan
from lada_secure.models.loading import open_texts
from lada_secure.models.memory import MemoryForecast, check_memory
from lada_secure.models.preflight import largest_sizes

logger = logging.getLogger(__name__)

_WHAT: Final = "the SLM"


def slm_memory(
    settings: SiteSettings, plan: MethodPlan, files: SiteFiles, pool: Sequence[PoolSample]
) -> MemoryForecast:
    """What the SLM will take at its largest batches, with the texts at hand.

    Args: pool: may be empty, where it is not known yet.
    Raises: ParameterError: the folder, or where the settings place the model, cannot be used.
    """
    placement = settings.model.placement.on_this_machine()
    return site_memory(plan, settings.slm_folder, placement, _sizes(settings, plan, files, pool))


def check_slm_memory(
    settings: SiteSettings, plan: MethodPlan, files: SiteFiles, pool: Sequence[PoolSample]
) -> None:
    """Raises: ParameterError: the SLM will not fit; nothing was promised, loaded or spent.

    UnfitStudy where it would not, were the records as short as can be: that may be told.
    """
    try:
        _check(settings, plan, _sizes(settings, plan, files, pool))
    except ParameterError:
        with told_as(FailureCode.MEMORY):
            _check(settings, plan, _sizes(settings, plan, None, pool))
        raise


def _check(settings: SiteSettings, plan: MethodPlan, sizes: SiteSizes) -> None:
    folder, placement = settings.slm_folder, settings.model.placement.on_this_machine()
    if site_fits_easily(plan, folder, placement, sizes):
        return
    forecast = site_memory(plan, folder, placement, sizes)
    check_memory(forecast, what=_WHAT, lower=LOWER_AT_A_SITE)
    warning = forecast.warning()
    if warning is not None:
        logger.warning("%s: %s", _WHAT, warning)


def _sizes(
    settings: SiteSettings,
    plan: MethodPlan,
    files: SiteFiles | None,
    pool: Sequence[PoolSample],
) -> SiteSizes:
    """Lengths of what is at hand; without files, of no record at all."""
    folder, calling = settings.slm_folder, settings.model.calling
    texts = open_texts(folder, name=str(folder), calling=calling).with_form(plan.form)
    own = () if files is None else files.records.records
    held_out = () if files is None or files.held_out is None else files.held_out.records
    return SiteSizes(
        batch_size=settings.physical_batch_size,
        records=largest_sizes(texts, [*own, *held_out]),
        count=len(own),
        pool=largest_sizes(texts, pool),
    )


def describe_slm_memory(
    settings: SiteSettings, plan: MethodPlan, files: SiteFiles, pool: Sequence[PoolSample]
) -> str:
    """The forecast in plain words, or why the SLM cannot be loaded as the settings say."""
    try:
        forecast = slm_memory(settings, plan, files, pool)
    except ParameterError as error:
        return f"The SLM cannot be loaded as the settings say: {error}."
    fits = "does not fit" if forecast.fault() is not None else "fits"
    return f"The SLM will take {forecast.sentence()}, so it {fits}."
