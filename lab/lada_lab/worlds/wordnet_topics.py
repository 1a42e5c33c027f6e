"""Topics from WordNet: a word with its definition, the kind it belongs to, and the chain above.

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


def kinds_below(
    nouns: Nouns, root: Synset, *, question: str, vague: frozenset[str]
) -> tuple[Topic, ...]:
    """Of which kind a word is, for the words below `root` with a short definition.

    Args: question: with `{word}` and `{definition}` in it. vague: kinds that fit nearly every word;
        a word whose nearest kind is one of them is left out.
    Returns: topics ordered by synset; no two with the same word or the same definition.
    """
    inside = frozenset(one.key for one in nouns.below(root))
    words = _usable(nouns, inside)
    common = Counter(key for synset in words for key in nouns.above(synset) & inside)
    topics: list[Topic] = []
    for synset in words:
        chain = nouns.chain(synset, root=root)[:-1]
        place = next(
            (at for at, one in enumerate(chain) if common[one.key] >= _MIN_WORDS_PER_KIND), None
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
                rationale=", ".join(one.name for one in steps),
                forbidden=_above(nouns, synset),
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


def _above(nouns: Nouns, synset: Synset) -> frozenset[str]:
    """Every word for what the synset is a kind of: all of them would be right."""
    return frozenset(word for key in nouns.above(synset) for word in nouns.synsets[key].words)
