"""Medical and financial topics from WordNet: a word, its definition, its kind, the chain above.

The kinds that serve as answers recur, so that what is learned from one word helps with another: the
nearest hypernym that has enough words below it.
"""

from __future__ import annotations

from collections import Counter

from lada_lab.worlds.multiple_choice import Topic
from lada_lab.worlds.wordnet import Nouns, Synset

_MAX_DEFINITION = 56
_MAX_WORD = 24
_MAX_CHAIN = 2
_MIN_WORDS_PER_KIND = 8


_VAGUE_CONDITIONS = frozenset(
    {"pathology", "disease", "illness", "unfitness", "growth", "disability"}
)
# Possession alone has some 350 usable kinds, too few for five banks and a pool.
_POSSESSIONS = (
    ("possession", "anything owned or possessed"),
    ("transaction", "the act of transacting within or between groups"),
    ("commercial document", "relating to commerce"),
    ("financial institution", "collects funds"),
)
_VAGUE_POSSESSIONS = frozenset(
    {
        "assets",
        "sum",
        "acquisition",
        "transferred property",
        "liabilities",
        "outgo",
        "cost",
        "farming",
        "cultivation",
        "production",
        "commercial enterprise",
    }
)


def condition_topics(nouns: Nouns) -> tuple[Topic, ...]:
    """Of which kind a condition is: WordNet's *ill health*."""
    root = nouns.find("ill health", definition_part="unable to function normally")
    question = "Condition: {word}, {definition}. Kind?"
    return kinds_below(nouns, root, question=question, vague=_VAGUE_CONDITIONS)


def possession_topics(nouns: Nouns) -> tuple[Topic, ...]:
    """Of which kind a financial term is, ordered by root and synset, each synset once."""
    topics: dict[str, Topic] = {}
    for word, definition_part in _POSSESSIONS:
        root = nouns.find(word, definition_part=definition_part)
        question = "Finance: {word}, {definition}. Kind?"
        for topic in kinds_below(nouns, root, question=question, vague=_VAGUE_POSSESSIONS):
            topics.setdefault(topic.key, topic)
    return tuple(topics.values())


def kinds_below(
    nouns: Nouns, root: Synset, *, question: str, vague: frozenset[str]
) -> tuple[Topic, ...]:
    """Of which kind a word is, for the words below `root` with a short definition.

    Args: question: with `{word}` and `{definition}` in it. vague: kinds that fit nearly every word;
        a word whose nearest kind is one of them is left out.
    Returns: topics ordered by synset; no two with the same word or the same definition.
    """
    inside = frozenset(synset.key for synset in nouns.below(root))
    words = _usable(nouns, inside)
    common = Counter(key for synset in words for key in nouns.above(synset) & inside)
    topics: list[Topic] = []
    for synset in words:
        chain = nouns.chain(synset, root=root)[:-1]
        place = next(
            (at for at, kind in enumerate(chain) if common[kind.key] >= _MIN_WORDS_PER_KIND), None
        )
        if place is None or chain[place].name in vague:
            continue
        # First what lies between the word and its kind, then what the kind itself belongs to.
        steps = [*chain[:place], *chain[place + 1 :], root][:_MAX_CHAIN]
        topics.append(
            Topic(
                key=f"wordnet:{synset.key}",
                question=question.format(word=synset.name, definition=synset.definition),
                answer=chain[place].name,
                rationale=", ".join(step.name for step in steps),
                # Every word for what the synset is a kind of would be right.
                forbidden=frozenset(
                    word for key in nouns.above(synset) for word in nouns.synsets[key].words
                ),
            )
        )
    return tuple(topics)


def _usable(nouns: Nouns, inside: frozenset[str]) -> list[Synset]:
    usable: list[Synset] = []
    seen: set[str] = set()
    for key in sorted(inside):
        synset = nouns.synsets[key]
        name, definition = synset.name.lower(), synset.definition.lower()
        if len(name) > _MAX_WORD or not 0 < len(definition) <= _MAX_DEFINITION:
            continue
        if name not in seen and definition not in seen:
            seen |= {name, definition}
            usable.append(synset)
    return usable
