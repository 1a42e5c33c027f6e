"""Financial topics: kinds of possession in WordNet, and of what banks do with them."""

from __future__ import annotations

from lada_secure.data.multiple_choice import Topic
from lada_secure.data.wordnet import Nouns
from lada_secure.data.wordnet_topics import definitions_below

# Possession alone has some 500 usable kinds, too few for five banks and a pool.
_ROOTS = (
    ("possession", "anything owned or possessed"),
    ("transaction", "the act of transacting within or between groups"),
    ("commercial document", "relating to commerce"),
    ("financial institution", "collects funds"),
)


def possession_topics(nouns: Nouns) -> tuple[Topic, ...]:
    """Which financial term a definition describes, ordered by root and synset, each once."""
    topics: dict[str, Topic] = {}
    answers: set[str] = set()
    for word, definition_part in _ROOTS:
        root = nouns.find(word, definition_part=definition_part)
        for topic in definitions_below(nouns, root, question="Finance: {definition}. Which term?"):
            # A term may have a meaning under two roots; as options they would look the same.
            if topic.key not in topics and topic.answer not in answers:
                topics[topic.key] = topic
                answers.add(topic.answer)
    return tuple(topics.values())
