"""Financial topics: kinds of possession in WordNet, and of what banks do with them."""

from __future__ import annotations

from lada_lab.worlds.multiple_choice import Topic
from lada_lab.worlds.wordnet import Nouns
from lada_lab.worlds.wordnet_topics import kinds_below

# Possession alone has some 350 usable kinds, too few for five banks and a pool.
_ROOTS = (
    ("possession", "anything owned or possessed"),
    ("transaction", "the act of transacting within or between groups"),
    ("commercial document", "relating to commerce"),
    ("financial institution", "collects funds"),
)
_VAGUE_KINDS = frozenset(
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


def possession_topics(nouns: Nouns) -> tuple[Topic, ...]:
    """Of which kind a financial term is, ordered by root and synset, each synset once."""
    topics: dict[str, Topic] = {}
    for word, definition_part in _ROOTS:
        root = nouns.find(word, definition_part=definition_part)
        question = "Finance: {word}, {definition}. Kind?"
        for topic in kinds_below(nouns, root, question=question, vague=_VAGUE_KINDS):
            topics.setdefault(topic.key, topic)
    return tuple(topics.values())
