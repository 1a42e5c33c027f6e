"""What the LLM writes and sites would refuse is dropped before it is sent."""

from __future__ import annotations

from pathlib import Path

import pytest
from site_doubles import POOL, site_plan
from trainer_doubles import small_model

from lada_protocol.rounds.llm_transfer import MAX_RATIONALE_CHARACTERS
from lada_secure.allocation.cells import fit_clusters
from lada_secure.method.llm_round import WrittenRationales
from lada_secure.models.embedding import HashedNgramEmbedder
from lada_secure.models.loading import LanguageModel
from lada_server.study import local_llm
from lada_server.study import teacher as teacher_module
from lada_server.study.llm_files import LlmFiles
from lada_server.study.proposal import Study
from lada_server.study.teacher import Teacher


def test_a_path_longer_than_its_message_may_hold_ends_no_round(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Sites refuse the whole message: one such path would end the round for everybody."""
    plan = site_plan().model_copy(update={"answer_form": "reasoned"})
    vectors = HashedNgramEmbedder().embed([one.question for one in POOL])
    study = Study(
        plan=plan,
        pool=POOL,
        clusters=fit_clusters(vectors, 2, 0),
        embeddings=vectors,
    )
    asked: list[str] = []

    def write(lm: LanguageModel, *_: object, **__: object) -> WrittenRationales:
        asked.append(lm.form.name)
        texts = {0: "x" * MAX_RATIONALE_CHARACTERS, 1: "x" * (MAX_RATIONALE_CHARACTERS + 1)}
        return WrittenRationales(texts=texts, demanded=3, wrong=1, dropped=1)

    monkeypatch.setattr(teacher_module, "write_rationales", write)
    monkeypatch.setattr(local_llm, "load_language_model", lambda *_, **__: small_model())
    llm = Teacher(
        study,
        local_llm.LocalLlm("small", cache_dir=tmp_path, threads=1),
        files=LlmFiles(folder=tmp_path),
        progress=lambda _done, _all: None,
    )
    written = llm.write([1, 1, 1])
    assert (list(written.texts), written.dropped, asked) == ([0], 2, ["reasoned"])
