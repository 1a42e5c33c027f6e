"""WordNet's nouns, read from its own `data.noun` file (format: wndb(5WN))."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lada_secure.errors import ParameterError

ENVIRONMENT_VARIABLE = "LADA_WORDNET_DIR"
DEFAULT_FOLDER = Path("/usr/share/wordnet")
_FILE = "data.noun"
_MAX_DEPTH = 32
# Only ordinary hypernyms and hyponyms ("@", "~"); named instances ("@i", "~i") are no kinds.
_HYPERNYM, _HYPONYM = "@", "~"


@dataclass(frozen=True, slots=True, kw_only=True)
class Synset:
    """One meaning: its words (first is the usual one), definition without examples, and kin."""

    key: str
    words: tuple[str, ...]
    definition: str
    hypernyms: tuple[str, ...]
    hyponyms: tuple[str, ...]

    @property
    def name(self) -> str:
        """The usual word."""
        return self.words[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Nouns:
    """All noun synsets by their key, the byte offset in eight digits."""

    synsets: Mapping[str, Synset]

    def find(self, word: str, *, definition_part: str) -> Synset:
        """The one meaning of a word whose definition contains a text.

        Raises: ParameterError: none, or several: this is not the WordNet that was expected.
        """
        found = [
            synset
            for synset in self.synsets.values()
            if word in synset.words and definition_part in synset.definition
        ]
        if len(found) != 1:
            raise ParameterError(
                f"WordNet: expected one noun {word!r} with {definition_part!r} in its definition, "
                f"got {len(found)}; install WordNet 3.0 (`apt-get install wordnet-base`)"
            )
        return found[0]

    def below(self, root: Synset) -> tuple[Synset, ...]:
        """All kinds of `root`, direct and indirect, without itself, ordered by key."""
        found = self._reached(root.hyponyms, lambda synset: synset.hyponyms)
        return tuple(self.synsets[key] for key in sorted(found - {root.key}))

    def chain(self, synset: Synset, *, root: Synset) -> tuple[Synset, ...]:
        """The shortest way up from a synset's hypernym to `root`, both included.

        Raises: ParameterError: `root` is not above the synset.
        """
        ways: list[tuple[str, ...]] = [(synset.key,)]
        for _ in range(_MAX_DEPTH):
            longer: list[tuple[str, ...]] = []
            for way in ways:
                for key in self.synsets[way[-1]].hypernyms:
                    if key == root.key:
                        return tuple(self.synsets[step] for step in (*way[1:], key))
                    longer.append((*way, key))
            ways = longer
        raise ParameterError(f"WordNet: {root.name!r} is not above {synset.name!r}")

    def above(self, synset: Synset) -> frozenset[str]:
        """Keys of everything that the synset is a kind of."""
        return frozenset(self._reached(synset.hypernyms, lambda found: found.hypernyms))

    def _reached(self, start: Iterable[str], kin: Callable[[Synset], tuple[str, ...]]) -> set[str]:
        seen: set[str] = set()
        waiting = [*start]
        while waiting:
            key = waiting.pop()
            if key not in seen:
                seen.add(key)
                waiting.extend(kin(self.synsets[key]))
        return seen


def wordnet_folder(folder: Path | None) -> Path:
    """Where WordNet lies: the caller's folder, else LADA_WORDNET_DIR, else /usr/share/wordnet.

    Raises: ParameterError: no `data.noun` there.
    """
    if folder is None:
        folder = Path(os.environ.get(ENVIRONMENT_VARIABLE) or DEFAULT_FOLDER)
    if not (folder / _FILE).is_file():
        raise ParameterError(
            f"WordNet is missing: expected {folder / _FILE}; run `apt-get install wordnet-base`, "
            f"or set {ENVIRONMENT_VARIABLE} to the folder that holds {_FILE}"
        )
    return folder


def read_nouns(folder: Path | None = None) -> Nouns:
    """Read all nouns, in about a second.

    Args: folder: that holds `data.noun`; None looks where `wordnet_folder` says.
    Raises: ParameterError: no such file, or a line that is not in WordNet's format.
    """
    path = wordnet_folder(folder) / _FILE
    synsets: dict[str, Synset] = {}
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.startswith("  "):  # the licence
                continue
            try:
                synset = _parse_line(line)
            except (ValueError, IndexError) as error:
                raise ParameterError(f"{path}:{number}: not a line of WordNet: {error}") from error
            synsets[synset.key] = synset
    return Nouns(synsets=synsets)


def _parse_line(line: str) -> Synset:
    head, _, gloss = line.partition(" | ")
    fields = head.split()
    word_count = int(fields[3], 16)
    words = tuple(fields[4 + 2 * index].replace("_", " ") for index in range(word_count))
    at = 4 + 2 * word_count
    pointers = [
        (fields[first], fields[first + 1])
        for first in range(at + 1, at + 1 + 4 * int(fields[at]), 4)
        if fields[first + 2] == "n"
    ]
    return Synset(
        key=fields[0],
        words=words,
        definition=_definition(gloss),
        hypernyms=tuple(key for symbol, key in pointers if symbol == _HYPERNYM),
        hyponyms=tuple(key for symbol, key in pointers if symbol == _HYPONYM),
    )


def _definition(gloss: str) -> str:
    """The gloss up to its first example or second definition, without remarks in brackets."""
    text = re.split(r';|"', gloss.strip())[0]
    return re.sub(r"\s+", " ", re.sub(r"\([^)]*\)", " ", text)).strip(" :,")
