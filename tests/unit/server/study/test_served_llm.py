"""A coordinator whose LLM is behind a server: the same study, refused before it is proposed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from completions_server import (
    MODEL,
    CompletionsServer,
    Reply,
    loaded,
    model_folder,
    serving,
    with_start_token,
)
from site_doubles import site_plan

from lada_protocol.plan import StudyPlan
from lada_protocol.rounds.llm_transfer import NO_ADAPTERS, SiteRationale
from lada_secure.allocation.cells import fit_clusters
from lada_secure.data.prompts import rationale_of
from lada_secure.data.records import PoolSample
from lada_secure.errors import ParameterError, TransportError
from lada_secure.method.plan import TransferPlan
from lada_secure.models.embedding import HashedNgramEmbedder
from lada_secure.models.endpoint.http import Endpoint
from lada_secure.models.endpoint.opening import ServedFolder
from lada_secure.models.loading import LanguageModel
from lada_server.study.llm_files import InferenceCache, LlmFiles
from lada_server.study.llm_transfer import improve_llm
from lada_server.study.local_llm import LocalLlm
from lada_server.study.proposal import Study, check_llm
from lada_server.study.served_llm import ServedLlm
from lada_server.study.teacher import Teacher

CITIES = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Norway": "Oslo", "Peru": "Lima"}
POOL = (
    *(
        PoolSample(
            sample_id=f"c{at}",
            question=f"Which city is the capital of {land}?",
            choices=tuple(sorted({city, "Paris", "Rome"})),
            answer=city,
        )
        for at, (land, city) in enumerate(CITIES.items())
    ),
    *(
        PoolSample(
            sample_id=f"o{at}", question=f"What is {at} + 3?", choices=(), answer=str(at + 3)
        )
        for at in range(2, 5)
    ),
)
TRANSFER = TransferPlan(
    bar=0.5,
    clip=0.5,
    integer_scale=1_000,
    holdout=3,
    candidates=5,
    budget=5,
    first_round=0,
    last_round=True,
    adapter_rank=4,
    adapter_layers=2,
    adapter_targets=("q_proj", "v_proj", "up_proj", "down_proj"),
    steps=40,
    batch_size=4,
    replay_batch_size=0,
    learning_rate=2e-2,
    contrastive_weight=0.0,
    contrastive_form="margin",
)
POOL_FILE = Path("pool.jsonl")


def study_of(*, uplink: TransferPlan | None = None, pool: tuple[PoolSample, ...] = POOL) -> Study:
    vectors = HashedNgramEmbedder().embed([one.question for one in pool])
    clusters = fit_clusters(vectors, 2, 0)
    plan: StudyPlan = site_plan(uplink=uplink)
    plan = plan.model_copy(
        update={
            "pool_size": len(pool),
            "paths": plan.paths.model_copy(update={"budget": 8, "max_new_tokens": 24}),
        }
    )
    return Study(plan=plan, pool=pool, clusters=clusters, embeddings=vectors)


def check(teacher: Teacher) -> None:
    """As the coordinator does before it proposes a new study."""
    check_llm(teacher.study, teacher.model, pool_file=POOL_FILE)
    teacher.check_abilities()


@pytest.fixture(scope="module")
def weights(served_folder: Path) -> LanguageModel:
    return loaded(served_folder)


@contextmanager
def served_teacher(
    study: Study,
    server: CompletionsServer,
    folder: Path,
    state: Path,
    *,
    adapters: Path | None = None,
) -> Iterator[Teacher]:
    """A teacher in a process of its own, as after a restart."""
    with serving(server):
        llm = ServedLlm(
            Endpoint(url=server.url, model=MODEL, patience_s=30.0),
            tokenizer=folder,
            adapters=adapters,
            kept=ServedFolder(folder=state / "llm"),
            threads=1,
        )
        yield Teacher(
            study,
            llm,
            files=LlmFiles(folder=state / "llm"),
            progress=ignore,
            looks=InferenceCache(folder=state / "llm"),
        )
        if llm._base is not None:
            llm._base.served.close()


def local_teacher(study: Study, folder: Path, state: Path) -> Teacher:
    return Teacher(
        study,
        LocalLlm(str(folder), cache_dir=state, threads=1),
        files=LlmFiles(folder=state / "llm"),
        progress=ignore,
    )


def ignore(_done: int, _total: int) -> None:
    """No progress is shown."""


def test_a_pool_looks_the_same_and_gets_the_same_paths_as_in_process(
    weights: LanguageModel, served_folder: Path, tmp_path: Path
) -> None:
    study, demand = study_of(), [2, 1, 3, 1, 1, 1, 2, 1]
    here = local_teacher(study, served_folder, tmp_path / "here")
    with served_teacher(
        study, CompletionsServer(weights), served_folder, tmp_path / "there"
    ) as there:
        check(there)
        np.testing.assert_array_equal(there.view_pool().cells, here.view_pool().cells)
        np.testing.assert_allclose(there.view_pool().features, here.view_pool().features, atol=1e-6)
        found = there.write(demand)
        assert found == here.write(demand)
        assert found.texts
        assert there.answer(range(8)).paths == here.answer(range(8)).paths


def test_a_restarted_coordinator_asks_for_nothing_that_it_knows(
    weights: LanguageModel, served_folder: Path, tmp_path: Path
) -> None:
    study = study_of()
    with served_teacher(study, CompletionsServer(weights), served_folder, tmp_path) as teacher:
        view = teacher.view_pool()
        texts = teacher.write([1] * 8).texts
    again = CompletionsServer(weights)
    with served_teacher(study, again, served_folder, tmp_path) as teacher:
        assert teacher.model.name.startswith(MODEL)
        probed = len(again.requests)
        np.testing.assert_array_equal(teacher.view_pool().features, view.features)
        assert teacher.write([1] * 8).texts == texts
        assert len(again.requests) == probed


def test_the_same_cache_serves_wherever_the_server_has_moved_to(
    weights: LanguageModel, served_folder: Path, tmp_path: Path
) -> None:
    study, names = study_of(), []
    for _ in range(2):
        with served_teacher(study, CompletionsServer(weights), served_folder, tmp_path) as teacher:
            names.append(teacher._llm.reference)
    assert names[0] == names[1]


def test_the_llm_learns_here_and_answers_there_with_what_it_has_learned(
    weights: LanguageModel, served_folder: Path, tmp_path: Path
) -> None:
    study = study_of(uplink=TRANSFER)
    gold = {
        at: SiteRationale(sample=at, path=rationale_of(one.answer, one.choices, None))
        for at, one in enumerate(POOL)
    }
    state, shared = tmp_path / "state", tmp_path / "adapters"
    server = CompletionsServer(weights)

    def improve(teacher: Teacher, *, version: str = NO_ADAPTERS) -> Any:
        return improve_llm(
            teacher,
            {"site-a": list(gold.values())},
            {},
            inquiry="5" * 64,
            version=version,
            seed=3,
        )

    with served_teacher(study, server, served_folder, state, adapters=shared) as teacher:
        check(teacher)
        assert server.adapters == {}
        before = teacher.answer(range(8))
        decision = improve(teacher)
        after = teacher.answer(range(8))
    expected = improve(local_teacher(study, served_folder, tmp_path / "here"))
    # The numbers of PEFT's own form of the same adapters; both decided alike.
    assert (decision.right_before, decision.right_after, decision.accepted) == (
        expected.right_before,
        expected.right_after,
        expected.accepted,
    )
    assert decision.accepted
    assert not np.allclose(before.confidence, after.confidence, atol=0.01)

    # A server that was started again has forgotten its adapters.
    restarted = CompletionsServer(weights)
    with served_teacher(study, restarted, served_folder, state, adapters=shared) as teacher:
        teacher.use(decision.llm_after)
        assert list(restarted.adapters) == [teacher.model.served.model]  # type: ignore[attr-defined]
        restarted.adapters.clear()
        fresh = replace(
            teacher.model.served,  # type: ignore[attr-defined]
            cache=None,
        )
        assert len(fresh.target_scores([teacher.model.encode_prompt("What is 2 + 3?")], [2])) == 1
        assert restarted.adapters
        np.testing.assert_allclose(teacher.answer(range(8)).confidence, after.confidence, atol=1e-4)
        teacher.use(NO_ADAPTERS)
        np.testing.assert_allclose(
            teacher.answer(range(8)).confidence, before.confidence, atol=1e-4
        )


def test_a_transfer_that_the_server_cannot_serve_is_refused_before_a_study_is_proposed(
    weights: LanguageModel, served_folder: Path, tmp_path: Path
) -> None:
    study, shared = study_of(uplink=TRANSFER), tmp_path / "adapters"

    def refusal(server: CompletionsServer, state: str, *, adapters: Path | None = shared) -> str:
        with (
            served_teacher(
                study, server, served_folder, tmp_path / state, adapters=adapters
            ) as teacher,
            pytest.raises(ParameterError) as refused,
        ):
            check(teacher)
        return str(refused.value)

    said = refusal(CompletionsServer(weights), "a", adapters=None)
    assert "llm.adapters is missing" in said
    said = refusal(CompletionsServer(weights, offers_adapters=False), "b")
    assert "adapters that it loads while it runs" in said
    assert "vLLM has it where it is started with --enable-lora" in said

    def accepts_and_forgets(path: str, _body: dict[str, Any]) -> Reply | None:
        return Reply(b"Success") if path == "/v1/load_lora_adapter" else None

    said = refusal(CompletionsServer(weights, fault=accepts_and_forgets), "c")
    assert "does not list lada-" in said

    class WithoutEffect(CompletionsServer):
        def _complete(self, body: dict[str, Any]) -> Reply:
            name = body["model"]
            reply = super()._complete({**body, "model": MODEL})
            return replace(reply, body=reply.body.replace(MODEL.encode(), name.encode()))

    said = refusal(WithoutEffect(weights), "d")
    assert "moved by 0 nats a token there" in said


def test_a_transfer_needs_the_weights_here_too(
    weights: LanguageModel, served_folder: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (bare / name).write_bytes((served_folder / name).read_bytes())
    shared, transfer = tmp_path / "adapters", study_of(uplink=TRANSFER)
    with served_teacher(
        study_of(), CompletionsServer(weights), bare, tmp_path / "without", adapters=shared
    ) as teacher:
        check(teacher)
    with (
        served_teacher(
            transfer, CompletionsServer(weights), bare, tmp_path / "with", adapters=shared
        ) as teacher,
        pytest.raises(ParameterError, match="whole folder of the served model"),
    ):
        check(teacher)
    other = model_folder(tmp_path / "other", seed=9)
    with (
        served_teacher(
            transfer, CompletionsServer(weights), other, tmp_path / "elsewhere", adapters=shared
        ) as teacher,
        pytest.raises(ParameterError, match=r"llm\.tokenizer that of the served model"),
    ):
        check(teacher)


def test_a_server_with_a_shorter_context_than_the_study_needs_is_refused(
    weights: LanguageModel, served_folder: Path, tmp_path: Path
) -> None:
    """It did not say so beforehand, as llama-cpp-python's does not."""

    def short(path: str, body: dict[str, Any]) -> Reply | None:
        tokens = len(body.get("prompt", ()))
        return Reply(b"too long", 400) if path == "/v1/completions" and tokens > 100 else None

    long = PoolSample(sample_id="long", question="number " * 40, choices=(), answer="40")
    server = CompletionsServer(weights, max_model_len=None, fault=short)
    with (
        served_teacher(study_of(pool=(*POOL, long)), server, served_folder, tmp_path) as teacher,
        pytest.raises(ParameterError, match=r"does not take \d+ tokens, which this study needs"),
    ):
        check(teacher)


def test_samples_that_a_server_of_texts_would_read_otherwise_are_named(
    weights: LanguageModel, served_folder: Path, tmp_path: Path
) -> None:
    spelled = PoolSample(sample_id="odd", question="What is <end>?", choices=(), answer="a mark")
    study = study_of(pool=(*POOL, spelled))
    with served_teacher(
        study, CompletionsServer(weights), served_folder, tmp_path / "ids"
    ) as teacher:
        check(teacher)
    folder = with_start_token(served_folder, tmp_path / "folder")
    texts = CompletionsServer(loaded(folder), speaks="llama_cpp", adds_bos=True)
    with served_teacher(study_of(), texts, folder, tmp_path / "texts") as teacher:
        check(teacher)
    with (
        served_teacher(study, texts, folder, tmp_path / "texts") as teacher,
        pytest.raises(ParameterError, match=r"pool\.jsonl:9: sample 'odd'.*control token"),
    ):
        check(teacher)


def test_a_server_that_fails_in_the_gate_is_not_taken_for_a_broken_model(
    weights: LanguageModel, served_folder: Path, tmp_path: Path
) -> None:
    server = CompletionsServer(weights)
    with serving(server):
        llm = ServedLlm(
            Endpoint(url=server.url, model=MODEL, patience_s=0.1),
            tokenizer=served_folder,
            adapters=None,
            kept=ServedFolder(folder=tmp_path),
            threads=1,
        )
        teacher = Teacher(study_of(), llm, files=LlmFiles(folder=tmp_path), progress=ignore)
        assert teacher.model
        server.fault = lambda _path, _body: Reply(b"", 503)
        with pytest.raises(TransportError, match="status 503"):
            check(teacher)
