"""Public questions of general knowledge, to try a model where there is no pool at hand.

Multiple choice with four options, in English, from tables of facts. They tell styles and answer
forms apart; how good a model is at a site's own subject they do not tell. A model without English
needs public questions of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeVar

from lada_secure.data.records import PoolSample

T = TypeVar("T")

_OPTIONS: Final = 4
# Question, then items and answers; the options of a question are answers of the same table.
_TABLES: Final[tuple[tuple[str, str], ...]] = (
    (
        "What is the capital of {}?",
        "France: Paris, Italy: Rome, Spain: Madrid, Germany: Berlin, Japan: Tokyo, China: Beijing, "
        "Russia: Moscow, Egypt: Cairo, Greece: Athens, Poland: Warsaw, Austria: Vienna, "
        "Portugal: Lisbon, Ireland: Dublin, Norway: Oslo, Sweden: Stockholm, Finland: Helsinki, "
        "Denmark: Copenhagen, Hungary: Budapest, Turkey: Ankara, Canada: Ottawa, Cuba: Havana, "
        "Peru: Lima, Chile: Santiago, Kenya: Nairobi, Iran: Tehran, Iraq: Baghdad, "
        "Thailand: Bangkok, South Korea: Seoul, Australia: Canberra, Argentina: Buenos Aires",
    ),
    (
        "On which continent is {}?",
        "France: Europe, Japan: Asia, Kenya: Africa, Brazil: South America, Canada: North America, "
        "India: Asia, Nigeria: Africa, Poland: Europe, Mexico: North America, Peru: South America, "
        "China: Asia, Egypt: Africa, Sweden: Europe, Argentina: South America, Vietnam: Asia, "
        "Ghana: Africa, Italy: Europe, Cuba: North America",
    ),
    (
        "What is the opposite of {}?",
        "hot: cold, up: down, big: small, fast: slow, early: late, open: closed, light: dark, "
        "rich: poor, young: old, full: empty, hard: soft, wet: dry, strong: weak, long: short, "
        "thick: thin, happy: sad, loud: quiet, north: south, buy: sell, win: lose",
    ),
    (
        "What kind of thing is a {}?",
        "sparrow: bird, salmon: fish, hammer: tool, bus: vehicle, apple: fruit, eagle: bird, "
        "trout: fish, saw: tool, truck: vehicle, banana: fruit, owl: bird, shark: fish, "
        "screwdriver: tool, bicycle: vehicle, pear: fruit, penguin: bird, tuna: fish, wrench: tool",
    ),
    (
        "What is a young {} called?",
        "dog: puppy, cat: kitten, cow: calf, horse: foal, sheep: lamb, pig: piglet, goat: kid, "
        "duck: duckling, hen: chick, bear: cub, deer: fawn, frog: tadpole",
    ),
    (
        "Which chemical element has the symbol {}?",
        "H: hydrogen, O: oxygen, C: carbon, N: nitrogen, Fe: iron, Au: gold, Ag: silver, "
        "Cu: copper, Na: sodium, Pb: lead, He: helium, Ca: calcium, K: potassium, Zn: zinc, "
        "Cl: chlorine, Hg: mercury",
    ),
    (
        "What does a {} do?",
        "baker: bakes bread, teacher: teaches pupils, pilot: flies planes, farmer: grows crops, "
        "dentist: treats teeth, tailor: sews clothes, plumber: repairs pipes, painter: paints, "
        "carpenter: works with wood, nurse: cares for patients, barber: cuts hair, "
        "composer: writes music, fisherman: catches fish, librarian: looks after books",
    ),
    (
        "Which part of the body is used to {}?",
        "see: the eyes, hear: the ears, smell: the nose, pump blood: the heart, "
        "breathe: the lungs, walk: the legs, think: the brain, chew: the teeth, "
        "digest food: the stomach, clean the blood: the kidneys",
    ),
)


def public_questions() -> tuple[PoolSample, ...]:
    """All of them, the subjects in turn; the right option stands at every place equally often."""
    by_table = [_questions(number, *table) for number, table in enumerate(_TABLES)]
    longest = max(map(len, by_table))
    return tuple(rows[at] for at in range(longest) for rows in by_table if at < len(rows))


def spread(samples: Sequence[T], count: int) -> list[T]:
    """So many of them, evenly spaced: pools are often in the order of their topics.

    Args: count: >= 1; all where there are not so many.
    """
    most = min(count, len(samples))
    return [samples[at * len(samples) // most] for at in range(most)]


def _questions(number: int, asked: str, facts: str) -> list[PoolSample]:
    pairs = [
        (item, answer) for item, _, answer in (one.partition(": ") for one in facts.split(", "))
    ]
    answers = list(dict.fromkeys(answer for _, answer in pairs))
    found = []
    for at, (item, answer) in enumerate(pairs):
        place = answers.index(answer)
        # The three that follow in the table's order.
        others = [answers[(place + step) % len(answers)] for step in range(1, _OPTIONS)]
        right = (at + number) % _OPTIONS
        options = (*others[:right], answer, *others[right:])
        found.append(
            PoolSample(
                sample_id=f"public-{number}-{at}",
                question=asked.format(item),
                choices=options,
                answer=answer,
            )
        )
    return found
