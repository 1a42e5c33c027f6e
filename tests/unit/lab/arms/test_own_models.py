"""One study whose sites have models of three families and tokenizers that share no token."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from byte_models import byte_model_folder

from lada_lab.arms.arms import ARMS
from lada_lab.arms.ledgers import ArmLedger, SharedReleases
from lada_lab.arms.rounds import SimulatedRound, SimulatedStudy
from lada_lab.arms.simulation import Laboratory
from lada_lab.arms.study import changed_plan
from lada_secure.method.execution import Execution
from lada_secure.method.site_context import SiteContext
from lada_secure.models.evaluation import greedy_rationales, rationale_losses
from lada_secure.models.examples import RationaleExample
from lada_secure.models.loading import LanguageModel, load_folder

FAMILIES = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Gemma3ForCausalLM")


@pytest.fixture(scope="module")
def models(
    small_models: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, ...]:
    """Folders of the three SLMs."""
    folder = tmp_path_factory.mktemp("own-models")
    return (
        small_models[0],
        *(byte_model_folder(folder / name, name) for name in ("qwen2", "gemma3")),
    )


@pytest.fixture(scope="module")
def ran(
    laboratory: Laboratory, models: tuple[Path, ...]
) -> tuple[SimulatedStudy, list[SimulatedRound]]:
    """A study of two rounds with both directions, every site with its own model.

    Picks are at random: by the noised masses of so few records a site may ask for nothing.
    """
    arm = ARMS["lada-transfer"]
    plan = changed_plan(laboratory.plan_of(arm, 8.0), {"allocation.strategy": "random"})
    study = laboratory.study(arm, plan)
    sites = []
    for site, folder in zip(study.sites, models, strict=True):
        context = SiteContext.open(
            study.plan,
            load_folder(folder, name=folder.name),
            pool=site.context.pool,
            clusters=site.context.clusters,
            embedder=site.context.embedder,
            records=site.context.records,
            book=ArmLedger(study.plan, site=site.name, shared=SharedReleases(), group="own"),
            execution=Execution(threads=1, batch_size=8),
        )
        sites.append(replace(site, context=context))
    study = replace(study, sites=tuple(sites))
    return study, [study.run_round(round_id) for round_id in range(study.plan.rounds)]


def lms(study: SimulatedStudy) -> list[LanguageModel]:
    return [site.context.lm for site in study.sites]


def test_the_models_are_of_three_families_and_two_share_no_token_with_the_third(
    ran: tuple[SimulatedStudy, list[SimulatedRound]],
) -> None:
    study, _ = ran
    found = [one.model.config.architectures[0] for one in lms(study)]
    assert tuple(found) == FAMILIES
    characters, *others = [set(one.tokenizer.get_vocab()) for one in lms(study)]
    assert all(not characters & tokens for tokens in others)
    assert not set(study.llm.lm.tokenizer.get_vocab()) & others[0]


def test_every_site_trains_its_own_model_on_the_same_texts(
    ran: tuple[SimulatedStudy, list[SimulatedRound]],
) -> None:
    study, rounds = ran
    written = {one.pool_index: one.text for done in rounds for one in done.received}
    assert written
    for site in study.sites:
        assert site.state.trained == tuple(range(study.plan.rounds))
        known = {one.pool_index: one.text for one in site.state.rationales}
        assert known.items() <= written.items()
        assert site.state.student is not None
        assert site.state.student.sha256 != site.context.reference.sha256
    assert all(site.state.rationales for site in study.sites)
    assert len({site.context.reference.sha256 for site in study.sites}) == 3


def test_the_way_back_asks_every_site(ran: tuple[SimulatedStudy, list[SimulatedRound]]) -> None:
    study, rounds = ran
    assert rounds[-1].transfer is not None
    assert all(study.plan.rounds - 1 in site.state.excess for site in study.sites)


def test_a_path_is_read_by_a_model_with_another_tokenizer_whatever_its_length(
    ran: tuple[SimulatedStudy, list[SimulatedRound]],
) -> None:
    study, _ = ran
    of_bytes = lms(study)[1]
    longer = "3" * (3 * of_bytes.max_tokens)
    examples = [
        RationaleExample(example_id=str(at), prompt=prompt, path=path, rejected=None)
        for at, (prompt, path) in enumerate([("1+2=", longer), ("1+2=", "ä€\U0001f44b" * 200)])
    ]
    for lm in (*lms(study), study.llm.lm):
        assert np.isfinite(rationale_losses(lm, examples, batch_size=2)).all()


def test_what_a_model_of_bytes_writes_is_a_text_for_the_llm(
    ran: tuple[SimulatedStudy, list[SimulatedRound]],
) -> None:
    study, _ = ran
    for lm in lms(study)[1:]:
        texts = greedy_rationales(lm, ["1+2=", "ä"], batch_size=2, max_new_tokens=12)
        examples = [
            RationaleExample(example_id=str(at), prompt="1+2=", path=text, rejected=None)
            for at, text in enumerate(texts)
        ]
        assert np.isfinite(rationale_losses(study.llm.lm, examples, batch_size=2)).all()
