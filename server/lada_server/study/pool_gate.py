"""The coordinator's own gate: pool, plan and LLM, before a new study is proposed to anybody.

A sample that the LLM cannot read, or a plan that a mechanism refuses, would otherwise be found by
the sites, after they have promised and paid. Everything here is public but the LLM, so samples are
named by line and id.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from lada_protocol.plan import StudyPlan
from lada_secure.data.prompts import prompt_of, rationale_of
from lada_secure.data.record_faults import Fault, refuse
from lada_secure.errors import ParameterError
from lada_secure.method.mechanisms import plan_inconsistencies
from lada_secure.models.examples import encode_row
from lada_secure.models.loading import TextModel
from lada_secure.models.preflight import needed_tokens, probe_model
from lada_server.study.proposal import Study
from lada_server.study.teacher import Teacher


def check_plan(plan: StudyPlan) -> None:
    """Raises: ParameterError: all that a plan's own mechanisms would refuse, here or at a site."""
    refuse([("the study", Fault(line=None, what=said)) for said in plan_inconsistencies(plan)])


def check_study(study: Study, teacher: Teacher, *, pool_file: Path) -> None:
    """Check a study that is about to be proposed; loads the LLM and calls it once.

    `read_pool` has checked the pool's form, and `prepare_study` has embedded every sample.

    Raises: ParameterError: all faults; nothing was proposed and no plan is kept.
    """
    check_plan(study.plan)
    lm = teacher.model
    _call_once(lm, study.plan)
    needed = needed_tokens(
        lm, study.pool, written=[study.plan.paths.max_new_tokens] * len(study.pool)
    )
    faults = [*_length_faults(study, lm, needed), *_reading_faults(study, lm)]
    refuse([(str(pool_file), fault) for fault in faults])
    teacher.check_length(max(needed))
    if study.plan.uplink is not None:
        teacher.check_transfer(study)


def _call_once(lm: TextModel, plan: StudyPlan) -> None:
    """The plan's sizes on the LLM, and a call of it."""

    if plan.paths.max_new_tokens >= lm.room:
        raise ParameterError(
            f"paths.max_new_tokens is {plan.paths.max_new_tokens}, the LLM {lm.name!r} takes "
            f"{lm.room} tokens with the prompt"
        )
    probe_model(lm, what="the LLM")


def _length_faults(study: Study, lm: TextModel, needed: Sequence[int]) -> Iterator[Fault]:
    for line, (sample, tokens) in enumerate(zip(study.pool, needed, strict=True), start=1):
        if tokens > lm.max_tokens:
            yield Fault(
                line=line,
                what=f"sample {sample.sample_id!r} is too long for the LLM: needs {tokens} tokens "
                f"with its path, at most {lm.max_tokens}",
            )


def _reading_faults(study: Study, lm: TextModel) -> Iterator[Fault]:
    """Samples that a server which takes texts alone would read otherwise."""
    for line, sample in enumerate(study.pool, start=1):
        path = rationale_of(sample.answer, sample.choices, None)
        row = encode_row(lm, prompt_of(sample.question, sample.choices), path)
        if not lm.reads_as_meant(row.tokens):
            yield Fault(
                line=line,
                what=f"sample {sample.sample_id!r} has other tokens at the LLM's server, which "
                "takes texts; does it spell a control token? Leave it out, or use a server that "
                "takes token ids, as vLLM does",
            )
