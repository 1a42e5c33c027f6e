"""Topics from WordNet: a definition, the word it defines, and the chain of hypernyms above it."""

from __future__ import annotations

from lada_secure.data.multiple_choice import Topic
from lada_secure.data.wordnet import Nouns, Synset

_DEFINITION_LENGTHS = (15, 64)
_MAX_WORD = 22
_MAX_CHAIN = 3


def definitions_below(nouns: Nouns, root: Synset, *, question: str) -> tuple[Topic, ...]:
    """One topic for every kind of `root` with a short definition and a word of its own.

    Args: question: with `{definition}` in it.
    Returns: topics ordered by synset. No two have the same answer or the same definition.
    """
    kinds = nouns.below(root)
    inside = frozenset(one.key for one in kinds)
    topics: list[Topic] = []
    seen: set[str] = set()
    for synset in kinds:
        shortest, longest = _DEFINITION_LENGTHS
        definition = synset.definition
        if not shortest <= len(definition) <= longest or len(synset.name) > _MAX_WORD:
            continue
        if synset.name.lower() in seen or definition.lower() in seen:
            continue
        seen |= {synset.name.lower(), definition.lower()}
        chain = [one.name for one in nouns.chain(synset, root=root)][:_MAX_CHAIN]
        topics.append(
            Topic(
                key=f"wordnet:{synset.key}",
                question=question.format(definition=definition),
                answer=synset.name,
                rationale=f"a kind of {', '.join(chain)}",
                forbidden=_kin(nouns, synset, inside),
            )
        )
    return tuple(topics)


def _kin(nouns: Nouns, synset: Synset, inside: frozenset[str]) -> frozenset[str]:
    """Words that a definition fits too: synonyms, and the kinds above and below within a field."""
    keys = (nouns.above(synset) & inside) | {one.key for one in nouns.below(synset)}
    kin = [synset, *(nouns.synsets[key] for key in keys)]
    return frozenset(word for one in kin for word in one.words)
