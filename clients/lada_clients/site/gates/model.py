"""The file gate's second half: plan and model against a site's settings and every text's length.

As in `files`, messages name files and lines on the site's own screen, never what a record says.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from lada_clients.net.failures import told_as
from lada_clients.site.gates.files import SiteFiles
from lada_clients.site.learner import SiteLearner
from lada_clients.site.settings import SitePolicy
from lada_protocol.failure_codes import FailureCode
from lada_protocol.plan import StudyPlan
from lada_secure.data.record_faults import Fault, refuse
from lada_secure.data.records import PoolSample, Record
from lada_secure.dpsgd.engine_probe import probe_engine
from lada_secure.method.mechanisms import plan_inconsistencies
from lada_secure.method.training import held_out_tokens, trainer_settings
from lada_secure.models.loading import LanguageModel
from lada_secure.models.preflight import needed_tokens, probe_model
from lada_secure.privacy.release.private_records import for_each_unit

logger = logging.getLogger(__name__)

# More take longer than a person waits without a word.
_MANY: Final = 5_000
_NOT_ENCODED: Final = -1
_POOL: Final = "the coordinator's pool"


def check_with_model(learner: SiteLearner, files: SiteFiles, policy: SitePolicy) -> None:
    """Second half: plan against settings and model, and every text in the model's own tokens.

    Loading the learner has loaded the model, put its adapters on it and embedded the pool.

    Raises: ParameterError: all faults; nothing was posted and nothing is in the ledger.
    """
    plan, lm, pool = learner.plan, learner.context.lm, learner.context.pool
    batch_size = learner.context.execution.batch_size
    told = [*plan_inconsistencies(plan), *size_faults(plan, lm, batch_size=batch_size)]
    with told_as(FailureCode.DOES_NOT_FIT):
        refuse([("the plan", Fault(line=None, what=one)) for one in told])
    with told_as(FailureCode.MODEL):
        _call_once(learner)
    if policy.records.too_long == "refuse":
        if len(files.records.records) > _MANY:
            logger.warning(
                "counting the tokens of %d records, once before the study ...",
                len(files.records.records),
            )
        _refuse_lengths(list(length_faults(lm, files, pool, Written.by_plan(plan))))


def _refuse_lengths(faults: Sequence[tuple[str, Fault]]) -> None:
    """All at once on this screen; told to others only where the pool alone is refused already."""
    if any(name == _POOL for name, _ in faults):
        with told_as(FailureCode.DOES_NOT_FIT):
            refuse(faults)
    refuse(faults)


def size_faults(plan: StudyPlan, lm: LanguageModel, *, batch_size: int) -> Iterator[str]:
    """Sizes of the plan against a site's settings and model; no record is looked at."""
    most, bound = lm.room, plan.privacy.max_records_per_unit
    if bound > batch_size:
        yield (
            f"max_records_per_unit is {bound}, physical_batch_size of the site's settings is "
            f"{batch_size}; raise physical_batch_size to {bound} or more"
        )
    if plan.paths.max_new_tokens >= most:
        yield (
            f"paths.max_new_tokens is {plan.paths.max_new_tokens}, the SLM takes "
            f"{most} tokens with the prompt"
        )


def _call_once(learner: SiteLearner) -> None:
    """The trainer's engine on this model, and a call of it.

    Raises: ParameterError: the model cannot be used as the plan would.
    """
    trainer = trainer_settings(learner.plan, learner.context.execution, round_id=0)
    probe_model(learner.context.lm, what="the model")
    probe_engine(learner.context.lm, trainer.engine)


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """How many tokens a model writes behind a text, at most.

    reason: behind a record without a rationale. sample: behind a pool sample. held_out: behind a
    held-out record.
    """

    reason: int
    sample: int
    held_out: Callable[[Record], int]

    @classmethod
    def by_plan(cls, plan: StudyPlan) -> Written:
        """As a study says it."""
        new_tokens = plan.paths.max_new_tokens
        return cls(
            reason=new_tokens if plan.guide is not None and plan.guide.own_reasons else 0,
            sample=new_tokens,
            held_out=lambda record: held_out_tokens(plan, record),
        )


def length_faults(
    lm: LanguageModel, files: SiteFiles, pool: Sequence[PoolSample], written: Written
) -> Iterator[tuple[str, Fault]]:
    """Texts that training or evaluation would have to cut."""
    own, held_out = files.records, files.held_out
    # File, line, text, and how many tokens the model writes after it.
    rows: list[tuple[str, int, Record | PoolSample, int]] = [
        (own.name, line, record, written.reason if record.rationale is None else 0)
        for line, record in zip(own.lines, own.records, strict=True)
    ]
    rows += [(_POOL, line, sample, written.sample) for line, sample in enumerate(pool, start=1)]
    if held_out is not None:
        rows += [
            (held_out.name, line, record, written.held_out(record))
            for line, record in zip(held_out.lines, held_out.records, strict=True)
        ]
    needed = for_each_unit(
        rows,
        lambda part: needed_tokens(
            lm, [text for _, _, text, _ in part], written=[tokens for *_, tokens in part]
        ),
        otherwise=_NOT_ENCODED,
        what="counting tokens",
    )
    for (name, line, _, _), tokens in zip(rows, needed, strict=True):
        what = f"too long for the model: needs {tokens} tokens, at most {lm.max_tokens}"
        if tokens == _NOT_ENCODED:
            what = "the model's tokenizer cannot encode it"
        if tokens == _NOT_ENCODED or tokens > lm.max_tokens:
            yield name, Fault(line=line, what=what)
