"""Making a study plan from the operator's study file, the public pool and its clusters.

A sample that the LLM cannot read, or a plan that a mechanism refuses, would be found by the sites
after they have promised and paid, so both are checked before anything is proposed. All of it is
public but the LLM, so samples are named by line and id.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, TypeAlias

from pydantic import ValidationError

from lada_protocol.identity.roster import Roster
from lada_protocol.plan import StudyPlan, format_time
from lada_protocol.settings import describe
from lada_secure.allocation.cells import Clusters, fit_clusters
from lada_secure.arrays import Float32Array
from lada_secure.canonical import canonical_json, sha256_hex
from lada_secure.data.record_faults import Fault, refuse
from lada_secure.data.records import PoolSample, pool_hash
from lada_secure.errors import ParameterError
from lada_secure.method.mechanisms import plan_inconsistencies
from lada_secure.models.embedding import embedder
from lada_secure.models.examples import encode_row
from lada_secure.models.preflight import needed_tokens, probe_model
from lada_secure.models.text_model import TextModel
from lada_secure.storage.whole_files import replace_file
from lada_server.board.storage_errors import disk_errors
from lada_server.settings import StudySettings
from lada_server.study.places import read_kept_plan

Fields: TypeAlias = dict[str, object]

# Settings say them in days from the first proposal on.
_TIMES: Final = ("expires", "approve_by")
_DAYS: Final = ("valid_days", "approval_days")
_ADVICE: Final = (
    "this study was proposed already and goes on as it was. Put back what was changed in the study "
    "file, the pool or the roster; or give the changed study a study_id of its own, once this one "
    "is over, or a state_dir of its own as well; or, while no site has spent anything, give it a "
    "study_id of its own and take the old one back with `lada server propose --new`"
)
# Stands in the draft of a plan whose pool was not clustered.
NO_CLUSTERS: Final = "0" * 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """A plan and the public material that its hashes pin."""

    plan: StudyPlan
    pool: tuple[PoolSample, ...]
    clusters: Clusters
    embeddings: Float32Array


def prepare_study(
    settings: StudySettings,
    *,
    pool: tuple[PoolSample, ...],
    roster: Roster,
    now: datetime,
    kept_plan: Path | None,
) -> Study:
    """Cluster the pool and make the plan, or read the plan that was proposed before a restart.

    A new plan is not on disk yet: `keep_plan` comes after the checks that need the LLM.

    Args: kept_plan: file of the plan; its expiry was fixed when it was first proposed, so it is
        read back and never made again. None: whatever was proposed before, this is a new one.
    Raises: ParameterError: the pool does not fit the study, the plan contradicts itself, or it was
        proposed otherwise; every difference, by the plan's own names.
    """
    _check_pool_size(settings, pool)
    embeddings = embedder(settings.embedder).embed([sample.question for sample in pool])
    clusters = fit_clusters(embeddings, settings.allocation.clusters, settings.seed)
    plan = _plan(
        settings,
        roster,
        now,
        pool=pool,
        clusters=clusters.count,
        clusters_sha256=sha256_hex(canonical_json(clusters.to_json())),
    )
    kept = None if kept_plan is None else read_kept_plan(kept_plan)
    if kept is not None:
        refuse([(str(kept_plan), fault) for fault in changed_since(kept, plan)])
        plan = kept
    return Study(plan=plan, pool=pool, clusters=clusters, embeddings=embeddings)


def draft_plan(
    settings: StudySettings, *, pool: tuple[PoolSample, ...], roster: Roster, now: datetime
) -> StudyPlan:
    """The plan as `prepare_study` would make it, without embedding the pool.

    `clusters_sha256` is `NO_CLUSTERS`, and the pool is taken to have as many clusters as asked.

    Raises: ParameterError: the pool does not fit the study, or the plan contradicts itself.
    """
    _check_pool_size(settings, pool)
    clusters = settings.allocation.clusters
    return _plan(settings, roster, now, pool=pool, clusters=clusters, clusters_sha256=NO_CLUSTERS)


def _check_pool_size(settings: StudySettings, pool: tuple[PoolSample, ...]) -> None:
    if settings.paths.budget > len(pool):
        raise ParameterError(
            f"paths.budget is {settings.paths.budget}, the pool has {len(pool)} samples; "
            "lower the budget or enlarge the pool"
        )
    uplink = settings.uplink
    if uplink is not None and uplink.holdout >= len(pool):
        raise ParameterError(
            f"uplink.holdout is {uplink.holdout}, the pool has {len(pool)} samples; hold out fewer "
            "or enlarge the pool"
        )


def changed_since(proposed: StudyPlan, now: StudyPlan) -> list[Fault]:
    """What a study would be now, where that is not what was proposed to the sites.

    They have approved, signed and perhaps paid for the plan as it was, so nothing of it changes.

    Returns: faults by dotted name; none where both are the same but for the times that were fixed
        when it was first proposed.
    """
    before, after = (_fields(plan.model_dump(mode="json")) for plan in (proposed, now))
    told = [
        Fault(
            line=None,
            what=f"{name}: proposed was {_said(before.get(name))}, now it is "
            f"{_said(after.get(name))}",
        )
        for name in dict.fromkeys((*before, *after))
        if not _fixed_before(name, before, after)
        and before.get(name) != after.get(name)
        and NO_CLUSTERS not in (before.get(name), after.get(name))
    ]
    if told:
        told.append(Fault(line=None, what=_ADVICE))
    return told


def _fixed_before(name: str, before: Fields, after: Fields) -> bool:
    """Whether a field is a time that counts from the first proposal, in both."""
    return name in _TIMES and None not in (before.get(name), after.get(name))


def _fields(value: object, name: str = "") -> Fields:
    """Every field by its dotted name."""
    if not isinstance(value, dict):
        return {name: value}
    found: Fields = {}
    for key, inner in value.items():
        found |= _fields(inner, f"{name}.{key}" if name else key)
    return found


def _said(value: object) -> str:
    return "left out" if value is None else json.dumps(value)


def check_plan(plan: StudyPlan, *, roster: Roster) -> None:
    """Raises: ParameterError: all that a plan's own mechanisms would refuse, here or at a site."""
    told = [*plan_inconsistencies(plan)]
    if plan.min_cohort > len(roster.sites):
        told.append(
            f"min_cohort: it is {plan.min_cohort}, the roster has {len(roster.sites)} sites; lower "
            "it, or take more sites into the roster"
        )
    refuse([("the study", Fault(line=None, what=said)) for said in told])


def check_llm(study: Study, lm: TextModel, *, pool_file: Path) -> None:
    """The plan's sizes on the LLM, a call of it, and the tokens of every sample.

    `read_pool` has checked the pool's form, and `prepare_study` has embedded every sample.

    Raises: ParameterError: all faults; nothing was proposed and no plan is kept.
    """
    new_tokens = study.plan.paths.max_new_tokens
    check_room(lm, new_tokens)
    probe_model(lm, what="the LLM")
    check_pool_lengths(lm, study.pool, new_tokens=new_tokens, pool_file=pool_file)


def check_room(lm: TextModel, new_tokens: int) -> None:
    """Raises: ParameterError: the LLM does not take paths of so many tokens."""
    if new_tokens >= lm.room:
        raise ParameterError(
            f"paths.max_new_tokens is {new_tokens}, the LLM {lm.name!r} takes {lm.room} tokens "
            "with the prompt"
        )


def check_pool_lengths(
    lm: TextModel, pool: Sequence[PoolSample], *, new_tokens: int, pool_file: Path
) -> None:
    """Raises: ParameterError: every sample that the LLM does not take whole, or as it is meant."""
    needed = needed_tokens(lm, pool, written=[new_tokens] * len(pool))
    faults = [
        Fault(
            line=line,
            what=f"sample {sample.sample_id!r} is too long for the LLM: needs {tokens} tokens "
            f"with its path, at most {lm.max_tokens}",
        )
        for line, (sample, tokens) in enumerate(zip(pool, needed, strict=True), start=1)
        if tokens > lm.max_tokens
    ]
    faults += [
        Fault(
            line=line,
            what=f"sample {sample.sample_id!r} has other tokens at the LLM's server, which takes "
            "texts; does it spell a control token? Leave it out, or use a server that takes token "
            "ids, as vLLM does",
        )
        for line, sample in enumerate(pool, start=1)
        if not lm.reads_as_meant(_row(lm, sample))
    ]
    refuse([(str(pool_file), fault) for fault in faults])


def _row(lm: TextModel, sample: PoolSample) -> tuple[int, ...]:
    prompt = lm.form.prompt(sample.question, sample.choices)
    return encode_row(lm, prompt, lm.form.target(sample.answer, sample.choices, None)).tokens


def keep_plan(path: Path, plan: StudyPlan) -> None:
    """Write the plan whole or not at all: it is signed and sent right afterwards."""
    with disk_errors(f"cannot write {path}", advice="nothing was proposed yet"):
        replace_file(path, plan.to_bytes())


def _plan(
    settings: StudySettings,
    roster: Roster,
    now: datetime,
    *,
    pool: tuple[PoolSample, ...],
    clusters: int,
    clusters_sha256: str,
) -> StudyPlan:
    chosen = {name: value for name, value in settings if name not in _DAYS}
    chosen["allocation"] = settings.allocation.model_copy(update={"clusters": clusters})
    days = settings.approval_days
    try:
        return StudyPlan(
            **chosen,
            coordinator=roster.coordinator.id,
            expires=format_time(now + timedelta(days=settings.valid_days)),
            approve_by=None if days is None else format_time(now + timedelta(days=days)),
            max_cohort=max(len(roster.sites), settings.min_cohort),
            pool_sha256=pool_hash(pool),
            pool_size=len(pool),
            clusters_sha256=clusters_sha256,
        )
    except ValidationError as error:
        # Fields that each may be, and that together may not.
        raise ParameterError(f"the study: {describe(error, StudyPlan)}") from error
