"""The demo preset: hospitals and banks that ask real medical and financial questions.

Every topic (an ICD-10-CM code, a WordNet synset) is dealt once, to one owner: the public pool, the
public material for the LLM, one site's training records or one site's held-out records. Hospitals
differ in their chapters of ICD-10-CM, everything else is dealt at random.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from lada_lab.worlds.finance import possession_topics
from lada_lab.worlds.medical import SPECIALITIES, condition_topics, diagnosis_topics
from lada_lab.worlds.multiple_choice import Choice, Topic, limit_answers, with_options
from lada_lab.worlds.sites import (
    FederationData,
    SiteData,
    check_sites,
    site_letter,
    unit_names,
)
from lada_lab.worlds.wordnet import read_nouns
from lada_secure.data.records import PoolSample, Record

SiteKind: TypeAlias = Literal["hospital", "bank"]

# Of every collection of topics: what the public pool and the LLM's material get.
_POOL_SHARE = 0.26
_TEACHER_SHARE = 0.26
# Of a site's own topics: what is held out, but no more than this many questions in all.
_HELD_OUT_SHARE = 0.42
_HELD_OUT = 66
_POOL_PER_COLLECTION = 90
_TEACHER_PER_COLLECTION = 200
_TRAIN_RECORDS = 180
# Every fifth record has an answer and no reasoning, as records often do.
_ANSWER_ONLY_EVERY = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class _Share:
    """One collection of topics, dealt. `sites`: by site, its training and held-out topics."""

    pool: tuple[Topic, ...]
    teacher: tuple[Topic, ...]
    sites: Mapping[str, tuple[tuple[Topic, ...], tuple[Topic, ...]]]


def site_kinds(sites: int) -> dict[str, SiteKind]:
    """The sites' ids and kinds: two hospitals and a bank, then in turn.

    Raises: ParameterError: sites out of range.
    """
    check_sites(sites)
    kinds: list[SiteKind] = ["hospital", "hospital", "bank"]
    kinds += ["hospital" if index % 2 else "bank" for index in range(3, sites)]
    counts = {"hospital": 0, "bank": 0}
    found: dict[str, SiteKind] = {}
    for kind in kinds:
        found[f"{kind}-{site_letter(counts[kind])}"] = kind
        counts[kind] += 1
    return found


def build_demo(*, sites: int, seed: int, wordnet_dir: Path | None = None) -> FederationData:
    """Build the demo's records, pool and teacher material.

    Args: sites: 3 to 12. seed: >= 0. wordnet_dir: see `wordnet.wordnet_folder`.
    Raises: ParameterError: sites out of range, or WordNet or ICD-10-CM is missing.
    """
    kinds = site_kinds(sites)
    hospitals = [site for site, kind in kinds.items() if kind == "hospital"]
    banks = [site for site, kind in kinds.items() if kind == "bank"]
    nouns = read_nouns(wordnet_dir)
    collections: list[tuple[tuple[Topic, ...], list[str]]] = [
        (condition_topics(nouns), hospitals),
        (possession_topics(nouns), banks),
    ]
    for hospital, chapters in zip(hospitals, SPECIALITIES, strict=False):
        collections.append((diagnosis_topics(chapters), [hospital]))
    shares = [
        _deal(topics, owners, np.random.default_rng([seed, 11, number]))
        for number, (topics, owners) in enumerate(collections)
    ]
    data = {
        site: _site(
            site,
            kind,
            [share.sites[site] for share in shares if site in share.sites],
            np.random.default_rng([seed, 12, number]),
        )
        for number, (site, kind) in enumerate(kinds.items())
    }
    rng = np.random.default_rng([seed, 13])
    pool = _shuffled_choices([share.pool for share in shares], rng)
    teacher = _shuffled_choices([share.teacher for share in shares], rng)
    return FederationData(
        sites=data,
        pool=tuple(_pool_sample(number, choice) for number, choice in enumerate(pool)),
        teacher=tuple(
            _record(f"public-{number:04d}", f"public-{number:04d}", choice, with_reason=True)
            for number, choice in enumerate(teacher)
        ),
    )


def _deal(topics: Sequence[Topic], owners: Sequence[str], rng: np.random.Generator) -> _Share:
    """Deal a collection: pool, teacher, then the owners in equal parts; nothing twice."""
    dealt = [topics[int(index)] for index in rng.permutation(len(topics))]
    pool_end = min(int(_POOL_SHARE * len(dealt)), _POOL_PER_COLLECTION)
    teacher_end = pool_end + min(int(_TEACHER_SHARE * len(dealt)), _TEACHER_PER_COLLECTION)
    private = dealt[teacher_end:]
    size = len(private) // len(owners)
    sites: dict[str, tuple[tuple[Topic, ...], tuple[Topic, ...]]] = {}
    for number, owner in enumerate(owners):
        own = private[number * size : (number + 1) * size]
        held_out = int(_HELD_OUT_SHARE * size)
        sites[owner] = (tuple(own[held_out:]), tuple(own[:held_out]))
    return _Share(
        pool=tuple(dealt[:pool_end]), teacher=tuple(dealt[pool_end:teacher_end]), sites=sites
    )


def _site(
    site: str,
    kind: SiteKind,
    parts: Sequence[tuple[tuple[Topic, ...], tuple[Topic, ...]]],
    rng: np.random.Generator,
) -> SiteData:
    each = _HELD_OUT // len(parts)
    held_out = _shuffled_choices([held_out[:each] for _, held_out in parts], rng)
    records_each = _TRAIN_RECORDS // len(parts)
    train = _shuffled_choices([_repeated(train, records_each) for train, _ in parts], rng)
    prefix = "patient" if kind == "hospital" else "customer"
    units = unit_names(rng, len(train), prefix=prefix)
    return SiteData(
        train=tuple(
            _record(
                f"{site}-{number:04d}",
                unit,
                choice,
                with_reason=number % _ANSWER_ONLY_EVERY != 0,
            )
            for number, (unit, choice) in enumerate(zip(units, train, strict=True))
        ),
        held_out=tuple(
            _record(
                f"{site}-held-out-{number:04d}",
                f"{prefix}-held-out-{number:04d}",
                choice,
                with_reason=True,
            )
            for number, choice in enumerate(held_out)
        ),
    )


def _repeated(topics: Sequence[Topic], records: int) -> tuple[Topic, ...]:
    """As many topics as records: several people have the same disease, with other options."""
    return tuple(topics[number % len(topics)] for number in range(records))


def _shuffled_choices(
    groups: Sequence[Sequence[Topic]], rng: np.random.Generator
) -> tuple[Choice, ...]:
    """Options within each group, so that they are of one kind; then all groups mixed."""
    choices = [choice for group in groups for choice in with_options(limit_answers(group), rng)]
    return tuple(choices[int(index)] for index in rng.permutation(len(choices)))


def _record(record_id: str, unit: str, choice: Choice, *, with_reason: bool) -> Record:
    return Record(
        record_id=record_id,
        unit=unit,
        question=choice.topic.question,
        choices=choice.options,
        answer=choice.topic.answer,
        rationale=choice.topic.rationale if with_reason else None,
    )


def _pool_sample(number: int, choice: Choice) -> PoolSample:
    return PoolSample(
        sample_id=f"pool-{number:04d}",
        question=choice.topic.question,
        choices=choice.options,
        answer=choice.topic.answer,
    )
