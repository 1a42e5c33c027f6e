"""Facts from public reference works: which group a diagnosis, a condition or a term belongs to.

Collections are neighbouring chapters of ICD-10-CM and two branches of WordNet. Another edition of
ICD-10 that a hospital codes by would be a natural conflict with such a pool, and it is a rare one:
of 6,521 titles that WHO's ICD-10 and ICD-10-CM have in common, 58 (0.9%) are in another category.
So one edition is used, and nothing in this pool is harmful to anybody.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from lada_lab.worlds.medical import CHAPTERS, SPECIALITIES, diagnosis_topics
from lada_lab.worlds.multiple_choice import Topic, limit_answers, with_options
from lada_lab.worlds.sites import Question
from lada_lab.worlds.wordnet import read_nouns
from lada_lab.worlds.wordnet_topics import condition_topics, possession_topics


def fact_collections(
    *, seed: int, wordnet_dir: Path | None = None
) -> Mapping[str, tuple[Question, ...]]:
    """All facts by collection, each with four options of its own kind.

    Args: seed: of the options. wordnet_dir: see `wordnet.wordnet_folder`.
    Raises: ParameterError: WordNet or ICD-10-CM is missing, with what to install.
    """
    nouns = read_nouns(wordnet_dir)
    topics: dict[str, Sequence[Topic]] = {
        "conditions": condition_topics(nouns),
        "finance": possession_topics(nouns),
        # Alone, some chapters have too few groups for four options that betray nothing.
        **{
            ", ".join(CHAPTERS[chapter] for chapter in chapters): diagnosis_topics(chapters)
            for chapters in SPECIALITIES
        },
    }
    return {
        name: _asked(some, np.random.default_rng([seed, 63, number]))
        for number, (name, some) in enumerate(topics.items())
    }


def _asked(topics: Sequence[Topic], rng: np.random.Generator) -> tuple[Question, ...]:
    """In a drawn order, so that no answer is limited to what comes first in its source."""
    drawn = [topics[at] for at in rng.permutation(len(topics))]
    return tuple(choice.asked() for choice in with_options(limit_answers(drawn), rng))
