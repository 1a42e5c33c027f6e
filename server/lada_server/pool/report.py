"""`lada pool report`: topics, lengths, answers, licences, repetitions and difficulty of a pool."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import numpy as np

from lada_protocol.party_files import read_settings
from lada_secure.allocation.cells import fit_clusters
from lada_secure.data.forms import CLOZE, AnswerForm
from lada_secure.data.importing.pool_alike import alike_samples, alike_sentences
from lada_secure.data.records import PoolSample, pool_hash, read_pool
from lada_secure.errors import ParameterError
from lada_secure.method.llm_round import GENERATION_BATCH_SIZE
from lada_secure.models.confidence import Answers, answer_pool
from lada_secure.models.embedding import HASHED_NGRAMS, embedder
from lada_secure.models.loading import model_folder, open_texts, quiet_transformers
from lada_secure.models.text_model import TextModel
from lada_secure.screen_text import printable
from lada_server.pool.figures import (
    AnswerShares,
    Difficulty,
    Lengths,
    Part,
    Spread,
    TopicFigures,
    answer_shares,
    difficulty,
    lengths,
    said_counts,
    topic_figures,
)
from lada_server.settings import ServerSettings, StudySettings
from lada_server.study.llm_look import look_at_llm

SCHEMA_VERSION: Final = 1
_CLUSTERS: Final = 8


class PoolReport(Part):
    """What is known of a pool. All of it is public.

    lengths: null where no tokenizer was named. licences, sources: samples by what they name, ""
    where they name nothing. alike: see `AlikeSamples`. difficulty: null where no LLM was asked.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    pool: str
    pool_sha256: str
    samples: int
    embedder: str
    lengths: Lengths | None
    answers: AnswerShares
    licences: dict[str, int]
    sources: dict[str, int]
    alike: dict[str, Any]
    topics: tuple[TopicFigures, ...]
    difficulty: Difficulty | None

    def sentences(self) -> Iterator[str]:
        """For people."""
        yield f"{self.pool}: {self.samples:,} samples, pool_sha256 {self.pool_sha256}"
        yield from self._told_lengths()
        kinds = ", ".join(
            f"{count:,} with {number} choices" if number else f"{count:,} open"
            for number, count in self.answers.choices.items()
        )
        yield f"questions: {kinds}"
        if self.answers.places:
            shares = ", ".join(f"{name} {count:,}" for name, count in self.answers.places.items())
            yield f"gold choices by their place: {shares}"
        common = ", ".join(
            f"{printable(text)[:40]!r} {count:,}" for text, count in self.answers.commonest.items()
        )
        yield f"{self.answers.different:,} different gold answers; the commonest: {common}"
        for what, counts in (("licences", self.licences), ("sources", self.sources)):
            told = ", ".join(
                f"{printable(name) or 'none named'} {count:,}" for name, count in counts.items()
            )
            yield f"{what}: {told}"
        yield from alike_sentences(self.alike)
        yield f"{len(self.topics)} topics by {self.embedder}:"
        for one in self.topics:
            right = "" if one.right is None else f", {one.right:.0%} right"
            yield f'  topic {one.topic}: {one.samples:,}{right}, like "{printable(one.example)}"'
        yield from self._told_difficulty()

    def _told_lengths(self) -> Iterator[str]:
        if self.lengths is None:
            yield "lengths in tokens: name --tokenizer, or the coordinator's --settings"
            return
        yield f"lengths in tokens of {self.lengths.tokenizer}:"
        for what, found in (("prompt", self.lengths.prompt), ("answer", self.lengths.answer)):
            yield f"  {what} {_spread_text(found)}"

    def _told_difficulty(self) -> Iterator[str]:
        found = self.difficulty
        if found is None:
            return
        yield f'{found.llm} solves {found.right:.1%} of them, asked in "{found.answer_form}"'
        fifths = ", ".join(map(str, found.confidence))
        yield f"  by its confidence in the gold answer, in fifths from unsure to sure: {fifths}"
        yield f"  least sure of {printable(', '.join(found.hardest))}"


class Shown(Protocol):
    """Where progress goes."""

    def begun(self, name: str) -> None:
        """A part of the work begins."""

    def progress(self, done: int, whole: int) -> None:
        """So much of it is done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportRequest:
    """What is asked for.

    pool: None is the settings'. settings: of a coordinator; its study says topics, form and LLM.
    ask_llm: whether the LLM answers every sample, which takes long. tokenizer: a model's folder, to
    count tokens where there are no settings. clusters: topics where there are none.
    """

    pool: Path | None = None
    settings: Path | None = None
    ask_llm: bool = False
    tokenizer: Path | None = None
    clusters: int | None = None
    near: bool = True

    def __post_init__(self) -> None:
        """Raises: ParameterError: nothing to look at, or options that contradict each other."""
        if self.pool is None and self.settings is None:
            raise ParameterError("expected a POOL to look at, or the coordinator's --settings")
        if self.ask_llm and self.settings is None:
            raise ParameterError("--llm: which one the coordinator's --settings say; name them")
        for name in ("tokenizer", "clusters"):
            if self.settings is not None and getattr(self, name) is not None:
                raise ParameterError(f"--{name}: the coordinator's --settings say it; leave it out")


def build_report(wanted: ReportRequest, shown: Shown) -> PoolReport:
    """Look at a pool.

    Raises: ParameterError: settings, pool or tokenizer cannot be used. TransportError: the LLM's
        server.
    """
    settings = None if wanted.settings is None else read_settings(wanted.settings, ServerSettings)
    study = None if settings is None else read_settings(settings.study, StudySettings)
    path = wanted.pool or (None if settings is None else settings.pool)
    if path is None:
        raise ParameterError("expected a POOL to look at")
    pool = read_pool(path)
    form: AnswerForm = CLOZE if study is None else study.form
    named = HASHED_NGRAMS if study is None else study.embedder
    shown.begun("looking for near duplicates")
    alike = alike_samples(pool, near=wanted.near, told=lambda done: shown.progress(done, len(pool)))
    shown.begun("making topics")
    embeddings = embedder(named).embed([one.question for one in pool])
    count, seed = (
        (wanted.clusters or _CLUSTERS, 0)
        if study is None
        else (study.allocation.clusters, study.seed)
    )
    clusters = fit_clusters(embeddings, count, seed)
    answers, llm = None, ""
    if wanted.ask_llm and settings is not None and study is not None:
        with quiet_transformers():
            model = look_at_llm(settings, form)
            llm = model.name
            answers = _answers(model, pool, study.paths.max_new_tokens, shown)
    return PoolReport(
        pool=path.name,
        pool_sha256=pool_hash(pool),
        samples=len(pool),
        embedder=named,
        lengths=_lengths(pool, settings, wanted.tokenizer, form),
        answers=answer_shares(pool),
        licences=said_counts([one.licence for one in pool]),
        sources=said_counts([one.source for one in pool]),
        alike=alike.to_json(),
        topics=topic_figures(pool, clusters, embeddings, answers),
        difficulty=None if answers is None else difficulty(pool, answers, llm=llm, form=form),
    )


def _answers(
    model: TextModel, pool: tuple[PoolSample, ...], max_new_tokens: int, shown: Shown
) -> Answers:
    shown.begun(f"asking {model.name}")
    found = []
    for first in range(0, len(pool), GENERATION_BATCH_SIZE):
        part = pool[first : first + GENERATION_BATCH_SIZE]
        found.append(
            answer_pool(
                model, part, batch_size=GENERATION_BATCH_SIZE, max_new_tokens=max_new_tokens
            )
        )
        shown.progress(first + len(part), len(pool))
    return Answers(
        paths=tuple(path for one in found for path in one.paths),
        right=np.concatenate([one.right for one in found]),
        confidence=np.concatenate([one.confidence for one in found]),
    )


def _lengths(
    pool: tuple[PoolSample, ...],
    settings: ServerSettings | None,
    tokenizer: Path | None,
    form: AnswerForm,
) -> Lengths | None:
    if settings is None:
        if tokenizer is None:
            return None
        return lengths(pool, open_texts(tokenizer, name=tokenizer.name), form)
    if isinstance(settings.llm, str):
        folder = model_folder(settings.llm, cache_dir=settings.cache_dir)
    else:
        folder = settings.llm.tokenizer
    texts = open_texts(folder, name=folder.name, calling=settings.model.calling)
    return lengths(pool, texts, form)


def _spread_text(found: Spread) -> str:
    return (
        f"{found.least:,} to {found.most:,}, half of them at most {found.median:,}, 95% at most "
        f"{found.p95:,}"
    )
