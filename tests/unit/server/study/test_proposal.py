"""The coordinator's gate: pool, plan and LLM are checked before a plan is kept or posted."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from protocol_world import make_cast
from site_doubles import POOL, site_plan
from trainer_doubles import small_model

from lada_protocol.plan import StudyPlan
from lada_secure.allocation.cells import fit_clusters
from lada_secure.data.records import PoolSample
from lada_secure.errors import ParameterError
from lada_secure.models.embedding import HashedNgramEmbedder
from lada_secure.models.identity import SlmPlan
from lada_server.settings import StudySettings
from lada_server.study.proposal import Study, check_llm, check_plan, keep_plan, prepare_study

VECTORS = HashedNgramEmbedder().embed([one.question for one in POOL])
POOL_FILE = Path("pool.jsonl")


def study_of(plan: StudyPlan | None = None, *, pool: tuple[PoolSample, ...] = POOL) -> Study:
    clusters = fit_clusters(VECTORS, 2, 0)
    return Study(
        plan=plan or site_plan(),
        pool=pool,
        clusters=clusters,
        embeddings=VECTORS,
    )


def llm(**changes: object) -> Any:
    return replace(small_model(), **changes)  # type: ignore[arg-type]


def test_a_pool_that_fits_its_llm_passes() -> None:
    check_llm(study_of(), llm(), pool_file=POOL_FILE)


def test_samples_that_are_too_long_for_the_llm_are_named_by_line_and_id() -> None:
    long = replace(POOL[0], sample_id="pool-0006", question="x" * 80)
    with pytest.raises(ParameterError) as refused:
        check_llm(study_of(pool=(*POOL, long)), llm(), pool_file=POOL_FILE)
    assert str(refused.value) == (
        "pool.jsonl:7: sample 'pool-0006' is too long for the LLM: needs 89 tokens with its path, "
        "at most 64"
    )


def test_a_plan_that_a_site_would_refuse_is_refused_here_first() -> None:
    plan = site_plan()
    plan = plan.model_copy(
        update={
            "allocation": plan.allocation.model_copy(update={"strategy": "magic"}),
            "statistics": plan.statistics.model_copy(
                update={"integer_scale": 1, "noise_multiplier": 1.0}
            ),
            "privacy": plan.privacy.model_copy(update={"epsilon_cap": 0.01}),
        }
    )
    with pytest.raises(ParameterError) as refused:
        check_plan(plan, roster=make_cast().roster)
    lines = str(refused.value).splitlines()
    assert [line.split(": ")[1] for line in lines] == ["statistics", "allocation", "privacy"]


def test_a_plan_for_more_sites_than_the_roster_has_is_refused() -> None:
    plan = site_plan().model_copy(update={"min_cohort": 4})
    with pytest.raises(ParameterError, match="it is 4, the roster has 3 sites"):
        check_plan(plan, roster=make_cast().roster)


@pytest.mark.parametrize("max_new_tokens", [64, 200])
def test_a_plan_whose_paths_the_llm_cannot_hold_is_refused(max_new_tokens: int) -> None:
    plan = site_plan()
    plan = plan.model_copy(
        update={"paths": plan.paths.model_copy(update={"max_new_tokens": max_new_tokens})}
    )
    with pytest.raises(ParameterError, match="takes 64 tokens with the prompt"):
        check_llm(study_of(plan), llm(), pool_file=POOL_FILE)


def test_an_llm_that_cannot_be_called_is_refused() -> None:
    broken = llm()
    with torch.no_grad():
        next(broken.model.parameters()).fill_(float("nan"))
    with pytest.raises(ParameterError, match="its weights are broken"):
        check_llm(study_of(), broken, pool_file=POOL_FILE)

    def fails(*_args: object, **_options: object) -> None:
        raise IndexError("no such layer")

    broken = llm()
    broken.model.forward = fails
    with pytest.raises(ParameterError, match="cannot be called: IndexError: no such layer"):
        check_llm(study_of(), broken, pool_file=POOL_FILE)


def study_settings(**changes: Any) -> StudySettings:
    plan = site_plan()
    return StudySettings(
        study_id="guided",
        title="t",
        valid_days=1.0,
        rounds=2,
        slm=SlmPlan(),
        embedder="hashed-ngrams",
        privacy=plan.privacy,
        statistics=plan.statistics,
        training=plan.training,
        distillation=plan.distillation,
        allocation=plan.allocation,
        paths=plan.paths.model_copy(update={"budget": 2}),
    ).model_copy(update=changes)


def prepared(kept: Path, settings: StudySettings | None = None, *, day: int = 1) -> Study:
    roster: Any = SimpleNamespace(coordinator=SimpleNamespace(id="coordinator"), sites=())
    return prepare_study(
        settings or study_settings(),
        pool=POOL,
        roster=roster,
        now=datetime(2026, 1, day, tzinfo=UTC),
        kept_plan=kept,
    )


def test_a_new_plan_is_not_on_disk_before_the_checks_have_passed(tmp_path: Path) -> None:
    kept = tmp_path / "plan.json"
    study = prepared(kept)
    assert not kept.exists()
    keep_plan(kept, study.plan)
    # Its expiry was fixed when it was proposed.
    assert prepared(kept, day=2).plan == study.plan


def test_a_study_that_was_changed_after_it_was_proposed_is_refused_by_its_differences(
    tmp_path: Path,
) -> None:
    kept, usual = tmp_path / "plan.json", study_settings()
    keep_plan(kept, prepared(kept).plan)
    changed = study_settings(
        rounds=3,
        allocation=usual.allocation.model_copy(
            update={"strategy": "domain", "sample_value": "gap"}
        ),
    )
    with pytest.raises(ParameterError) as refused:
        prepared(kept, changed)
    said = str(refused.value)
    assert f"{kept}: rounds: proposed was 2, now it is 3" in said
    assert 'allocation.strategy: proposed was "guided", now it is "domain"' in said
    assert 'allocation.sample_value: proposed was left out, now it is "gap"' in said
    assert len(said.splitlines()) == 4
    assert "goes on as it was. Put back what was changed" in said
    # Whoever puts it back goes on.
    assert prepared(kept).plan.rounds == 2


def test_the_time_to_decide_counts_from_the_first_proposal(tmp_path: Path) -> None:
    kept, settings = tmp_path / "plan.json", study_settings(approval_days=0.5)
    plan = prepared(kept, settings).plan
    assert (plan.approve_by, plan.expires) == ("2026-01-01T12:00:00Z", "2026-01-02T00:00:00Z")
    keep_plan(kept, plan)
    # A coordinator that is started again the day after does not give people more time.
    assert prepared(kept, settings, day=2).plan == plan


@pytest.mark.parametrize("before", [None, 0.5])
def test_a_time_to_decide_that_comes_or_goes_is_a_changed_study(
    tmp_path: Path, before: float | None
) -> None:
    kept = tmp_path / "plan.json"
    keep_plan(kept, prepared(kept, study_settings(approval_days=before)).plan)
    after = None if before else 0.5
    with pytest.raises(ParameterError, match="approve_by: proposed was"):
        prepared(kept, study_settings(approval_days=after))


def test_people_have_no_more_time_than_the_plan() -> None:
    with pytest.raises(ValueError, match="approval_days is above valid_days"):
        StudySettings.model_validate({**dict(study_settings()), "approval_days": 1.5})
