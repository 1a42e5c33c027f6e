"""The coordinator's LLM transfer with a real LLM: kept if the hold-out agrees; durable."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lada_lab.worlds.arithmetic import ArithmeticWorld, build_world
from lada_lab.worlds.character_models import character_tokenizer
from lada_lab.worlds.federation import build_federation
from lada_lab.worlds.tiny_models import pretrain, pretraining_of
from lada_protocol.plan import StudyPlan
from lada_protocol.rounds.llm_transfer import NO_ADAPTERS, SiteRationale
from lada_protocol.wire.messages import LlmUpdateBody
from lada_secure.allocation.cells import Clusters
from lada_secure.data.prompts import rationale_of
from lada_secure.data.records import pool_hash
from lada_secure.method.plan import (
    AllocationPlan,
    DistillationPlan,
    PrivacyPlan,
    RationalesPlan,
    StatisticsPlan,
    TrainingPlan,
    TransferPlan,
    split_pool,
)
from lada_secure.models.identity import SlmPlan
from lada_secure.models.loading import quiet_transformers
from lada_server.study.llm_files import LlmFiles
from lada_server.study.llm_transfer import improve_llm, samples_to_ask
from lada_server.study.local_llm import LocalLlm
from lada_server.study.proposal import Study
from lada_server.study.teacher import Teacher

SITES, SEED = 3, 0
UPLINK = TransferPlan(
    bar=0.5,
    clip=0.5,
    integer_scale=1_000,
    holdout=60,
    candidates=120,
    budget=100,
    first_round=0,
    last_round=True,
    adapter_rank=8,
    adapter_layers=2,
    adapter_targets=("q_proj", "v_proj", "up_proj", "down_proj"),
    steps=60,
    batch_size=16,
    replay_batch_size=0,
    learning_rate=5e-3,
    contrastive_weight=0.1,
    contrastive_form="margin",
)


def make_study(uplink: TransferPlan = UPLINK) -> Study:
    """The tiny preset's pool under a plan whose other sections do not matter here."""
    pool = build_federation("tiny", sites=SITES, seed=SEED).pool
    plan = StudyPlan(
        study_id="study",
        title="A study for tests",
        coordinator="coordinator",
        expires="2030-01-31T12:00:00Z",
        rounds=2,
        min_cohort=3,
        max_cohort=3,
        slm=SlmPlan(),
        embedder="ngrams",
        seed=1,
        pool_sha256=pool_hash(pool),
        pool_size=len(pool),
        clusters_sha256="2" * 64,
        phase_timeout_s=60.0,
        privacy=PrivacyPlan(
            unit="patient",
            target_delta=1e-5,
            epsilon_cap=8.0,
            max_records_per_unit=4,
            max_units=50,
        ),
        statistics=StatisticsPlan(loss_clip=4.0, integer_scale=16, noise_multiplier=8.0),
        training=TrainingPlan(
            noise_multiplier=2.0,
            l2_clip_norm=1.0,
            sampling_probability=0.05,
            expected_units=10.0,
            steps_per_round=5,
            pool_gradients="public",
        ),
        distillation=DistillationPlan(
            adapter_rank=2,
            adapter_layers=1,
            adapter_targets=("q_proj",),
            train_a=True,
            learning_rate=1e-3,
            pool_batch_size=2,
            private_weight=0.5,
            contrastive_weight=0.0,
            contrastive_form="margin",
        ),
        allocation=AllocationPlan(
            strategy="band",
            clusters=1,
            difficulty_bins=2,
            quota=3,
            threshold=0.1,
            exploration_weight=0.1,
            screen_low=0.0,
            screen_high=1.0,
        ),
        paths=RationalesPlan(budget=5, max_new_tokens=12, attempts=1),
        uplink=uplink,
    )
    return Study(
        plan=plan,
        pool=pool,
        clusters=Clusters(centroids=np.zeros((1, 2))),
        embeddings=np.zeros((len(pool), 2)),
    )


STUDY = make_study()
SPLIT = split_pool(STUDY.plan)
EVERYTHING = tuple(range(0, len(STUDY.pool), 4))


@dataclass(frozen=True)
class Llm:
    """An LLM that has half learned the world of the pool."""

    folder: Path
    world: ArithmeticWorld

    def teacher(self, state: Path, study: Study = STUDY) -> Teacher:
        """The LLM in a process of its own, as after a restart."""
        return Teacher(
            study,
            LocalLlm(str(self.folder), cache_dir=state, threads=1),
            files=LlmFiles(folder=state / "llm"),
            progress=lambda _done, _total: None,
        )

    def gold(self, places: tuple[int, ...]) -> dict[int, str]:
        """Worked solutions of pool samples."""
        found = {}
        for place in places:
            question = STUDY.pool[place].question
            rationale, answer = self.world.solve(int(question[0]), question[1:])
            found[place] = rationale_of(answer, (), rationale)
        return found


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Llm:
    torch.set_num_threads(1)
    world = build_world(sites=SITES, seed=SEED)
    folder = tmp_path_factory.mktemp("llm")
    model = pretrain(world, pretraining_of("llm", sites=SITES, steps=150), seed=SEED)
    with quiet_transformers():
        model.save_pretrained(folder)
        character_tokenizer().save_pretrained(folder)
    return Llm(folder=folder, world=world)


def improve(
    teacher: Teacher,
    paths: dict[int, str],
    *,
    version: str = NO_ADAPTERS,
    written: dict[int, str] | None = None,
) -> LlmUpdateBody:
    """One update from two sites that send the same paths."""
    sent = [SiteRationale(sample=sample, path=path) for sample, path in sorted(paths.items())]
    return improve_llm(
        teacher,
        {"site-a": sent, "site-b": sent},
        written or {},
        inquiry="5" * 64,
        version=version,
        seed=3,
    )


@pytest.fixture(scope="module")
def improved(llm: Llm, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LlmUpdateBody]:
    """A state folder after an update with worked solutions, and the decision."""
    state = tmp_path_factory.mktemp("state")
    return state, improve(llm.teacher(state), llm.gold(SPLIT.candidates))


def test_right_paths_make_the_llm_better_and_the_update_is_on_disk_under_its_hash(
    improved: tuple[Path, LlmUpdateBody],
) -> None:
    state, decision = improved
    assert (decision.accepted, decision.inquiry, decision.holdout) == (True, "5" * 64, 60)
    assert decision.llm_before == NO_ADAPTERS
    assert decision.certainty_after > decision.certainty_before
    assert decision.right_after > decision.right_before
    assert (decision.received, decision.used) == (240, 120)
    assert [path.stem for path in (state / "llm").iterdir()] == [decision.llm_after]


def test_a_restarted_coordinator_goes_on_with_the_better_llm(
    llm: Llm, improved: tuple[Path, LlmUpdateBody]
) -> None:
    state, decision = improved
    plain, again = llm.teacher(state), llm.teacher(state)
    again.use(decision.llm_after)
    before, after = plain.answer(SPLIT.holdout), again.answer(SPLIT.holdout)
    assert int(before.right.sum()) == decision.right_before
    assert int(after.right.sum()) == decision.right_after
    again.use(NO_ADAPTERS)
    np.testing.assert_allclose(again.answer(SPLIT.holdout).confidence, before.confidence, atol=1e-6)


def test_the_same_update_after_a_crash_is_the_same_version(
    llm: Llm, improved: tuple[Path, LlmUpdateBody]
) -> None:
    state, decision = improved
    assert improve(llm.teacher(state), llm.gold(SPLIT.candidates)) == decision


def test_the_pool_looks_different_to_the_better_llm(
    llm: Llm, improved: tuple[Path, LlmUpdateBody]
) -> None:
    state, decision = improved
    teacher = llm.teacher(state)
    before = teacher.view_pool()
    teacher.use(decision.llm_after)
    after = teacher.view_pool()
    # The last column of each row counts how likely the LLM's path is right.
    assert after.features.sum() > before.features.sum()


def test_an_update_that_the_hold_out_does_not_agree_with_leaves_no_trace(
    llm: Llm, tmp_path: Path
) -> None:
    broken = make_study(UPLINK.model_copy(update={"learning_rate": 1.0, "steps": 3}))
    teacher = llm.teacher(tmp_path, broken)
    untouched = teacher.answer(EVERYTHING)

    decision = improve(teacher, llm.gold(SPLIT.candidates[:8]))

    assert not decision.accepted
    assert decision.used == 8
    assert decision.right_after < decision.right_before
    assert decision.llm_after == NO_ADAPTERS
    assert not (tmp_path / "llm").exists()
    assert teacher.answer(EVERYTHING).paths == untouched.paths


def test_paths_with_another_answer_than_the_gold_one_are_not_learned(
    llm: Llm, tmp_path: Path
) -> None:
    wrong = {one: f"{path[:-1]}x" for one, path in llm.gold(SPLIT.candidates[:5]).items()}

    decision = improve(llm.teacher(tmp_path), wrong)

    assert (decision.received, decision.used) == (10, 0)
    assert decision.right_before == decision.right_after
    assert decision.certainty_before == decision.certainty_after
    assert not decision.accepted
    assert decision.llm_after == NO_ADAPTERS


def test_the_llm_s_own_paths_on_held_out_samples_are_never_replayed(
    llm: Llm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = make_study(UPLINK.model_copy(update={"steps": 1, "replay_batch_size": 4}))
    teacher = llm.teacher(tmp_path, small)
    seen: list[set[str]] = []
    real = teacher.tune

    def tune(examples, replay, settings):
        seen.append({one.example_id for one in [*examples, *replay]})
        return real(examples, replay, settings)

    monkeypatch.setattr(teacher, "tune", tune)
    written = llm.gold((*SPLIT.holdout, *SPLIT.candidates[3:9]))

    improve(teacher, llm.gold(SPLIT.candidates[:3]), written=written)

    ids = {STUDY.pool[place].sample_id for place in SPLIT.candidates[:9]}
    assert seen
    assert all(one == ids for one in seen)


def test_where_the_hold_out_disagrees_smaller_steps_are_tried_from_the_same_start(
    llm: Llm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = llm.teacher(tmp_path)
    rates: list[float] = []
    real = teacher.tune

    def tune(examples, replay, settings):
        rates.append(settings.learning_rate)
        # The first try ruins the model; the second one must not start from there.
        spoiled = replace(settings, learning_rate=1.0) if len(rates) == 1 else settings
        return real(examples, replay, spoiled)

    monkeypatch.setattr(teacher, "tune", tune)

    decision = improve(teacher, llm.gold(SPLIT.candidates))

    assert rates == [UPLINK.learning_rate, UPLINK.learning_rate / 2]
    assert decision.accepted
    assert decision.right_after > decision.right_before
    assert [path.stem for path in (tmp_path / "llm").iterdir()] == [decision.llm_after]


def test_it_asks_where_sites_know_more_and_the_llm_does_not(llm: Llm, tmp_path: Path) -> None:
    teacher = llm.teacher(tmp_path)
    opened = np.zeros(len(STUDY.pool), dtype=int)
    opened[list(SPLIT.candidates)] = 7

    asked = samples_to_ask(teacher, opened.tolist(), version=NO_ADAPTERS)

    answers = teacher.answer(SPLIT.candidates)
    unsure = [
        place
        for place, own in zip(SPLIT.candidates, answers.confidence, strict=True)
        if own <= UPLINK.bar
    ]
    assert asked == unsure[: UPLINK.budget]
    assert 0 < len(asked) < len(SPLIT.candidates)
    assert samples_to_ask(teacher, [0] * len(STUDY.pool), version=NO_ADAPTERS) == []
