"""The coordinator's SLM-to-LLM transfer: the method's decision, made durable and told to all.

Step 10 at the coordinator. The LLM's own answers stay with it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from lada_protocol.rounds.llm_transfer import SiteRationale
from lada_protocol.wire.messages import LlmUpdateBody
from lada_secure.method.llm_transfer import improve, samples_to_inquire
from lada_secure.method.plan import split_pool, transfer_of
from lada_server.study.teacher import Teacher

LOG = logging.getLogger(__name__)


def samples_to_ask(teacher: Teacher, opened: Sequence[int], *, version: str) -> list[int]:
    """Candidates on which the sites know more than the LLM of this version."""
    plan = teacher.study.plan
    teacher.use(version)
    return samples_to_inquire(plan, opened, teacher.answer(split_pool(plan).candidates))


def improve_llm(
    teacher: Teacher,
    site_paths: Mapping[str, Sequence[SiteRationale]],
    written: Mapping[int, str],
    *,
    inquiry: str,
    version: str,
    seed: int,
) -> LlmUpdateBody:
    """Train the LLM of this version on the sites' rationales, and decide by the hold-out.

    Where the update is kept, its adapters are on disk before this returns; where it is not,
    the LLM is what it was.

    Args: site_paths: by site. written: the LLM's own checked rationales by pool index. inquiry: its
        message hash.
    Returns: what all are told.
    """
    study = teacher.study
    teacher.use(version)
    received = {site: {one.sample: one.path for one in paths} for site, paths in site_paths.items()}
    found = improve(teacher, study.plan, study.pool, received, written, seed=seed)
    accepted = found.weights is not None
    kept = version if found.weights is None else teacher.keep(found.weights)
    teacher.use(kept)
    LOG.info(
        "update of the LLM %s: %s to %s",
        "kept" if accepted else "dropped",
        found.before,
        found.after,
    )
    return LlmUpdateBody(
        inquiry=inquiry,
        received=found.received,
        used=found.used,
        holdout=transfer_of(study.plan).holdout,
        right_before=found.before.right,
        right_after=found.after.right,
        certainty_before=found.before.confidence,
        certainty_after=found.after.confidence,
        accepted=accepted,
        llm_before=version,
        llm_after=kept,
    )
