"""A world in plain words, for real weights: hospitals with shorthand of their own.

A note lists shorthand, and the answer names the ward of each: `Woman, 54: BX then TQ. Wards?`,
path `BX eczema, TQ angina`, answer `dermatology, cardiology`. Which ward treats a condition is
general knowledge, which real weights bring along. What a shorthand stands for differs, as in
`world`: every one has several *senses*, a house always means the first one of its own, and
questions under the public form's heading (the mark) mean the second one to the public and nothing
special inside a house. Marked pool samples about a house's shorthand are therefore *harmful* there.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np

from lada_lab.worlds.sites import (
    Question,
    check_sites,
    pool_of,
    shuffled,
    site_letter,
    unit_names,
)
from lada_lab.worlds.study_data import BenchData, BenchSite, bench_site
from lada_secure.errors import ParameterError

MARK = "Public form. "
HOUSE_SHORTHAND = 5
LONGEST = 2
HOUSE_SENSE, STREET_SENSE = 0, 1
WARDS: Mapping[str, tuple[str, ...]] = {
    "cardiology": ("angina", "arrhythmia", "pericarditis", "tachycardia"),
    "neurology": ("migraine", "epilepsy", "meningitis", "neuralgia"),
    "dermatology": ("eczema", "psoriasis", "acne", "urticaria"),
    "pulmonology": ("asthma", "bronchitis", "pneumonia", "emphysema"),
    "gastroenterology": ("gastritis", "colitis", "hepatitis", "appendicitis"),
    "ophthalmology": ("glaucoma", "cataract", "conjunctivitis", "keratitis"),
    "endocrinology": ("diabetes", "goiter", "hyperthyroidism", "acromegaly"),
    "rheumatology": ("gout", "arthritis", "lupus", "fibromyalgia"),
    "oncology": ("lymphoma", "melanoma", "leukemia", "sarcoma"),
}
_COMMON = 3
_FIRST_LETTERS = "BCDFGHJKLMNPQRSTVWXZ"
_PEOPLE = ("Woman", "Man")
_YOUNGEST, _OLDEST = 20, 89

Reader: TypeAlias = Literal["slm", "llm"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WardSettings:
    """Sizes and shares, as in `world.WorldSettings`.

    private, held_out: records per site. pool: public samples in all. harmful: share of the pool
    that is marked questions about house shorthand, in [0, 0.6]. routine: share of the rest that is
    about common shorthand. senses: meanings per house shorthand, 2 or 3. marked: share of private
    questions with the mark. rationales: share of private records with their reasoning.
    """

    sites: int = 3
    private: int = 160
    held_out: int = 80
    pool: int = 240
    harmful: float = 0.3
    routine: float = 0.2
    senses: int = 3
    marked: float = 0.5
    rationales: float = 1.0

    def __post_init__(self) -> None:
        check_sites(self.sites)
        for name, share, most in (
            ("harmful", self.harmful, 0.6),
            ("routine", self.routine, 0.9),
            ("marked", self.marked, 1.0),
            ("rationales", self.rationales, 1.0),
        ):
            if not 0.0 <= share <= most:
                raise ParameterError(f"world: {name}: expected 0 to {most:g}, got {share}")
        if self.senses not in (2, 3):
            raise ParameterError(f"world: senses: expected 2 or 3, got {self.senses}")
        for name, size in (
            ("private", self.private),
            ("held_out", self.held_out),
            ("pool", self.pool),
        ):
            if not 10 <= size <= 10_000:
                raise ParameterError(f"world: {name}: expected 10 to 10,000, got {size}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hospital:
    """One house's shorthand and its private templates, all of `LONGEST` terms."""

    shorthand: tuple[str, ...]
    train: tuple[tuple[str, ...], ...]
    held_out: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WardWorld:
    """What every shorthand stands for in each sense, as (condition, ward), and the hospitals."""

    senses: Mapping[str, tuple[tuple[str, str], ...]]
    common: tuple[str, ...]
    hospitals: tuple[Hospital, ...]

    @property
    def private_templates(self) -> frozenset[tuple[str, ...]]:
        """Templates that no public question may have."""
        return frozenset(one for house in self.hospitals for one in house.train + house.held_out)

    def solve(self, template: Sequence[str], senses: Sequence[int]) -> tuple[str, str]:
        """Reasoning and answer, for example ("BX eczema, TQ angina", "dermatology, cardiology")."""
        meant = [
            self.senses[term][which % len(self.senses[term])]
            for term, which in zip(template, senses, strict=True)
        ]
        reasons = [
            f"{term} {condition}" for term, (condition, _) in zip(template, meant, strict=True)
        ]
        return ", ".join(reasons), ", ".join(ward for _, ward in meant)


def build_ward_world(settings: WardSettings, *, seed: int) -> WardWorld:
    """Draw all shorthand and what it stands for, and split each house's templates."""
    rng = np.random.default_rng([seed, 51])
    terms = shuffled(rng, [a + b for a, b in itertools.permutations(_FIRST_LETTERS, 2)])
    # No two start with the same letter, so that none is read as another one.
    distinct = list({one[0]: one for one in terms}.values())
    wanted = _COMMON + settings.sites * HOUSE_SHORTHAND
    distinct += [one for one in terms if one not in distinct][: max(0, wanted - len(distinct))]
    common = tuple(distinct[:_COMMON])
    senses = {term: _meanings(rng, 1, 1)[0] for term in common}
    hospitals: list[Hospital] = []
    for index in range(settings.sites):
        first = _COMMON + index * HOUSE_SHORTHAND
        own = tuple(distinct[first : first + HOUSE_SHORTHAND])
        senses |= dict(zip(own, _meanings(rng, len(own), settings.senses), strict=True))
        templates = shuffled(rng, list(itertools.product(own, repeat=LONGEST)))
        third = len(templates) // 3
        hospitals.append(
            Hospital(
                shorthand=own,
                train=tuple(templates[:third]),
                held_out=tuple(templates[third : 2 * third]),
            )
        )
    return WardWorld(senses=senses, common=common, hospitals=tuple(hospitals))


def _meanings(
    rng: np.random.Generator, terms: int, senses: int
) -> list[tuple[tuple[str, str], ...]]:
    """For each term, conditions of different wards; no condition twice within the house."""
    found: list[tuple[tuple[str, str], ...]] = []
    free = {ward: shuffled(rng, list(conditions)) for ward, conditions in WARDS.items()}
    for _ in range(terms):
        # The wards with most conditions left first, so that no house runs out of them.
        order = sorted(shuffled(rng, list(free)), key=lambda ward: -len(free[ward]))
        found.append(tuple((free[ward].pop(), ward) for ward in order[:senses]))
    return found


def build_ward_data(settings: WardSettings, *, seed: int) -> BenchData:
    """Everything a simulated study starts from; the same arguments give the same data."""
    world = build_ward_world(settings, seed=seed)
    rng = np.random.default_rng([seed, 54])
    asked = shuffled(rng, _pool_questions(world, settings, rng))
    return BenchData(
        sites=tuple(
            _site(world, house, settings, index=index, seed=seed)
            for index, house in enumerate(world.hospitals)
        ),
        pool=pool_of(
            _asked(world, question, template, [_public_sense(question)] * len(template))
            for question, template in asked
        ),
        mark=MARK,
        harmful=frozenset(at for at, (text, _) in enumerate(asked) if text.startswith(MARK)),
    )


def _public_sense(question: str) -> int:
    return STREET_SENSE if question.startswith(MARK) else HOUSE_SENSE


def _note(template: Sequence[str], rng: np.random.Generator, *, mark: str) -> str:
    person = _PEOPLE[int(rng.integers(len(_PEOPLE)))]
    age = int(rng.integers(_YOUNGEST, _OLDEST + 1))
    return f"{mark}{person}, {age}: {' then '.join(template)}. Wards?"


def _site(
    world: WardWorld, house: Hospital, settings: WardSettings, *, index: int, seed: int
) -> BenchSite:
    rng = np.random.default_rng([seed, 53, index])

    def questions(templates: Sequence[tuple[str, ...]], count: int) -> Iterator[Question]:
        for _ in range(count):
            template = templates[int(rng.integers(len(templates)))]
            mark = MARK if rng.random() < settings.marked else ""
            note = _note(template, rng, mark=mark)
            asked = _asked(world, note, template, [HOUSE_SENSE] * len(template))
            told = rng.random() < settings.rationales
            yield asked if told else replace(asked, rationale=None)

    return bench_site(
        f"hospital-{site_letter(index)}",
        units=unit_names(rng, settings.private, prefix="patient"),
        train=questions(house.train, settings.private),
        held_out=questions(house.held_out, settings.held_out),
    )


def _asked(
    world: WardWorld, question: str, template: Sequence[str], senses: Sequence[int]
) -> Question:
    rationale, answer = world.solve(template, senses)
    return Question(question=question, answer=answer, rationale=rationale)


def _public_templates(world: WardWorld, shorthand: Sequence[str]) -> list[tuple[str, ...]]:
    private = world.private_templates
    return [
        one
        for terms in range(1, LONGEST + 1)
        for one in itertools.product(shorthand, repeat=terms)
        if one not in private
    ]


def _pool_questions(
    world: WardWorld, settings: WardSettings, rng: np.random.Generator
) -> list[tuple[str, tuple[str, ...]]]:
    """Questions and their templates, none twice: marked, plain about a house, and routine."""
    harmful = round(settings.harmful * settings.pool)
    routine = round(settings.routine * (settings.pool - harmful))
    houses = [_public_templates(world, one.shorthand) for one in world.hospitals]
    common = [_public_templates(world, world.common)]
    found: dict[str, tuple[str, ...]] = {}
    for count, groups, mark in (
        (harmful, houses, MARK),
        (settings.pool - harmful - routine, houses, ""),
        (routine, common, ""),
    ):
        for number in range(count):
            templates = groups[number % len(groups)]
            template = templates[int(rng.integers(len(templates)))]
            question = _note(template, rng, mark=mark)
            while question in found:
                question = _note(template, rng, mark=mark)
            found[question] = template
    return list(found.items())


def public_text(
    world: WardWorld, reader: Reader, count: int, rng: np.random.Generator, *, marked: float
) -> list[Question]:
    """Worked public questions that a model reads beforehand.

    The LLM's text has the house's sense where it is plain and the street's under the mark; the
    SLM's mixes all senses. No private template occurs.
    """
    everything = [
        _public_templates(world, [*world.common, *house.shorthand]) for house in world.hospitals
    ]
    found: list[Question] = []
    for _ in range(count):
        templates = everything[int(rng.integers(len(everything)))]
        template = templates[int(rng.integers(len(templates)))]
        question = _note(template, rng, mark=MARK if rng.random() < marked else "")
        drawn: list[int] = rng.integers(0, 6, len(template)).tolist()
        meant = drawn if reader == "slm" else [_public_sense(question)] * len(template)
        found.append(_asked(world, question, template, meant))
    return found
