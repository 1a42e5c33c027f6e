"""The demo preset: hospitals and banks that ask real medical and financial questions.

Every topic (an ICD-10-CM code, a WordNet synset) is dealt once, to one owner: the public pool, the
public material for the LLM, one site's training records or one site's held-out records. Hospitals
differ in their chapters of ICD-10-CM, everything else is dealt at random.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from lada_lab.worlds.medical import SPECIALITIES, diagnosis_topics
from lada_lab.worlds.model_cache import cached_folder
from lada_lab.worlds.multiple_choice import Choice, Topic, limit_answers, with_options
from lada_lab.worlds.sites import (
    FederationData,
    SiteData,
    check_sites,
    numbered,
    pool_of,
    records_of,
    site_letter,
    unit_names,
)
from lada_lab.worlds.smollm2 import SMOLLM2, export_smollm2
from lada_lab.worlds.wordnet import read_nouns
from lada_lab.worlds.wordnet_topics import condition_topics, possession_topics

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


class _Part(NamedTuple):
    """One site's topics of a collection."""

    train: list[Topic]
    held_out: list[Topic]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Share:
    """One collection of topics, dealt."""

    pool: list[Topic]
    teacher: list[Topic]
    sites: Mapping[str, _Part]


def site_kinds(sites: int) -> dict[str, SiteKind]:
    """The sites' ids and kinds: two hospitals and a bank, then in turn.

    Raises: ParameterError: sites out of range.
    """
    check_sites(sites)
    kinds: list[SiteKind] = ["hospital", "hospital", "bank"]
    kinds += ["hospital" if index % 2 else "bank" for index in range(3, sites)]
    return {f"{kind}-{site_letter(kinds[:at].count(kind))}": kind for at, kind in enumerate(kinds)}


def build_demo(*, sites: int, seed: int, wordnet_dir: Path | None = None) -> FederationData:
    """Build the demo's records, pool and teacher material.

    Args: sites: 3 to 12. seed: >= 0. wordnet_dir: see `wordnet.wordnet_folder`.
    Raises: ParameterError: sites out of range, or WordNet or ICD-10-CM is missing.
    """
    kinds = site_kinds(sites)
    hospitals = [site for site, kind in kinds.items() if kind == "hospital"]
    banks = [site for site, kind in kinds.items() if kind == "bank"]
    nouns = read_nouns(wordnet_dir)
    collections = [
        (condition_topics(nouns), hospitals),
        (possession_topics(nouns), banks),
        *(
            (diagnosis_topics(chapters), [hospital])
            for hospital, chapters in zip(hospitals, SPECIALITIES, strict=False)
        ),
    ]
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
    pool = _shuffled_choices((share.pool for share in shares), rng)
    teacher = _shuffled_choices((share.teacher for share in shares), rng)
    return FederationData(
        sites=data,
        pool=pool_of(choice.asked() for choice in pool),
        teacher=records_of(
            (choice.asked() for choice in teacher),
            numbered("public", len(teacher)),
            prefix="public",
        ),
    )


def _deal(topics: Sequence[Topic], owners: Sequence[str], rng: np.random.Generator) -> _Share:
    """Deal a collection: pool, teacher, then the owners in equal parts; nothing twice."""
    dealt = [topics[index] for index in rng.permutation(len(topics))]
    pool_end = min(int(_POOL_SHARE * len(dealt)), _POOL_PER_COLLECTION)
    teacher_end = pool_end + min(int(_TEACHER_SHARE * len(dealt)), _TEACHER_PER_COLLECTION)
    size = (len(dealt) - teacher_end) // len(owners)
    held_out = int(_HELD_OUT_SHARE * size)
    sites: dict[str, _Part] = {}
    for number, owner in enumerate(owners):
        own = dealt[teacher_end + number * size :][:size]
        sites[owner] = _Part(train=own[held_out:], held_out=own[:held_out])
    return _Share(pool=dealt[:pool_end], teacher=dealt[pool_end:teacher_end], sites=sites)


def _site(site: str, kind: SiteKind, parts: Sequence[_Part], rng: np.random.Generator) -> SiteData:
    each = _HELD_OUT // len(parts)
    held_out = _shuffled_choices((part.held_out[:each] for part in parts), rng)
    # As many topics as records: several people have the same disease, with other options.
    records_each = _TRAIN_RECORDS // len(parts)
    train = _shuffled_choices(
        ([part.train[at % len(part.train)] for at in range(records_each)] for part in parts), rng
    )
    prefix = "patient" if kind == "hospital" else "customer"
    units = unit_names(rng, len(train), prefix=prefix)
    return SiteData(
        train=records_of(
            (
                choice.asked(with_reason=number % _ANSWER_ONLY_EVERY != 0)
                for number, choice in enumerate(train)
            ),
            units,
            prefix=site,
        ),
        held_out=records_of(
            (choice.asked() for choice in held_out),
            numbered(f"{prefix}-held-out", len(held_out)),
            prefix=f"{site}-held-out",
        ),
    )


def _shuffled_choices(groups: Iterable[Sequence[Topic]], rng: np.random.Generator) -> list[Choice]:
    """Options within each group, so that they are of one kind; then all groups mixed."""
    choices = [choice for group in groups for choice in with_options(limit_answers(group), rng)]
    return [choices[index] for index in rng.permutation(len(choices))]


def demo_llm(cache_dir: Path, *, sites: int, seed: int) -> Path:
    """Tune SmolLM2 on the demo's public material, or find the result in the cache.

    Args: sites, seed: as in `build_demo`.
    Returns: its folder, "smollm2-135m-tuned-SITES-SEED" in the cache.
    Raises: ParameterError: weights or data are missing.
    """
    # Imported here: whoever builds data alone does without torch.
    from lada_lab.worlds.tuned_llm import Tuning, tune
    from lada_secure.models.loading import load_folder, quiet_transformers

    def build(folder: Path) -> None:
        data = build_demo(sites=sites, seed=seed)
        lm = load_folder(export_smollm2(cache_dir), name=SMOLLM2)
        merged = tune(lm, data.teacher, Tuning(), seed=seed)
        with quiet_transformers():
            merged.save_pretrained(folder)
            lm.tokenizer.save_pretrained(folder)

    return cached_folder(cache_dir, f"{SMOLLM2}-tuned-{sites}-{seed}", build)
