"""Reasons for private records that have an answer alone: the site's own model writes them.

A path that the model writes and that ends in the record's answer is more likely to be right than
one that does not, and becomes something to learn (Zelikman et al. 2022, arXiv 2203.14465). A model
that has learned most of a domain from pool paths explains most of the site's records, and so learns
the rest from records that could teach it nothing before.
"""

from __future__ import annotations

from collections.abc import Sequence

from lada_secure.data.prompts import answer_of, path_of, prompt_of
from lada_secure.data.records import Record
from lada_secure.distillation.evaluation import greedy_paths
from lada_secure.distillation.models import LanguageModel


def written_reasons(
    lm: LanguageModel, records: Sequence[Record], *, batch_size: int, max_new_tokens: int
) -> dict[str, str]:
    """What the model as it is now writes for each record, where it ends in the record's answer.

    Each path is a function of one record and the model. With a released model, training on them
    therefore bounds a unit's part as training on the record itself does. The paths are private.

    Args: records: with distinct ids.
    Returns: path by record id. Left out: another answer, and a bare answer without reasons.
    """
    if not records:
        return {}
    prompts = [prompt_of(one.question, one.choices) for one in records]
    paths = greedy_paths(lm, prompts, batch_size=batch_size, max_new_tokens=max_new_tokens)
    return {
        one.record_id: path
        for one, path in zip(records, paths, strict=True)
        if answer_of(path, one.choices) == one.answer
        and path.strip() != path_of(one.answer, one.choices, None).strip()
    }
