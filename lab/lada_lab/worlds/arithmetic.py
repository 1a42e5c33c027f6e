"""The tiny preset's world: chains of affine operators modulo 10, with their rationales.

A question such as `4fgh` starts from 4 and applies f, g, h in turn; its path spells each result
(`f9g7h8`) and ends in the answer. Every site has a domain of three operators of its own. A word can
mean another thing in the street than in the trade: each domain operator also has a *folk* meaning,
and general text (what an SLM was trained on) uses both. A site's SLM therefore knows how to reason
but not what its own house's terms mean, which is what distillation can teach it.

Hold-out is by template, the string of operators without the starting digit.
"""

from __future__ import annotations

import itertools
import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from lada_lab.worlds.sites import (
    FederationData,
    SiteData,
    check_sites,
    shuffled,
    site_letter,
    unit_names,
)
from lada_secure.data.records import PoolSample, Record

MODULUS = 10
SYMBOLS_PER_DOMAIN = 3
COMMON = ("x", "y", "z")
DOMAIN_SYMBOLS = tuple(
    one for one in string.ascii_lowercase + string.ascii_uppercase if one not in COMMON
)
MAX_STEPS = 4

# Sites in turn get private questions of these lengths.
_DIFFICULTIES = (3, 4)
_TRAIN_RECORDS = 360
_HELD_OUT = 80
_POOL_PER_DOMAIN = 48
_POOL_ROUTINE = 48
_TEACHER_RECORDS = 240
_MULTIPLIERS = (1, 3, 7, 9)

Speech: TypeAlias = Literal["trade", "folk"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """digit -> (multiplier * digit + offset) mod 10; the multiplier is invertible mod 10."""

    multiplier: int
    offset: int

    def apply(self, digit: int) -> int:
        """One step of a chain."""
        return (self.multiplier * digit + self.offset) % MODULUS


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """One site's operators and the split of its templates.

    `train` and `held_out` hold the private templates, all of `steps` operators; every other string
    over `symbols` is public.
    """

    symbols: tuple[str, ...]
    steps: int
    train: tuple[str, ...]
    held_out: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArithmeticWorld:
    """What every operator means, in the trade and in the street, and each site's domain."""

    trade: Mapping[str, Operator]
    folk: Mapping[str, Operator]
    domains: tuple[Domain, ...]

    @property
    def private_templates(self) -> frozenset[str]:
        """Templates that no public text may contain as a whole question."""
        return frozenset(
            template for domain in self.domains for template in domain.train + domain.held_out
        )

    def solve(self, start: int, template: str) -> tuple[str, str]:
        """Rationale and answer of the question `start` + `template`, in the trade's meaning.

        Args: start: 0 to 9. template: known operators.
        Returns: for example ("f9g7", "7").
        """
        trade: Speech = "trade"
        return self.solve_as(start, template, (trade,) * len(template))

    def solve_as(self, start: int, template: str, speech: tuple[Speech, ...]) -> tuple[str, str]:
        """As `solve`, with the meaning of each step's operator chosen by `speech`."""
        digit = start
        steps: list[str] = []
        for symbol, kind in zip(template, speech, strict=True):
            meaning = self.trade if kind == "trade" else self.folk
            digit = meaning[symbol].apply(digit)
            steps.append(f"{symbol}{digit}")
        return "".join(steps), str(digit)


def build_world(*, sites: int, seed: int) -> ArithmeticWorld:
    """Draw the operators' meanings and split each domain's templates in three equal parts.

    Args: sites: 3 to 12, one domain each. seed: >= 0.
    Raises: ParameterError: sites out of range.
    """
    check_sites(sites)
    rng = np.random.default_rng([seed, 1])
    affine = [
        Operator(multiplier=multiplier, offset=offset)
        for multiplier in _MULTIPLIERS
        for offset in range(MODULUS)
        if (multiplier, offset) != (1, 0)
    ]
    trade: dict[str, Operator] = {}
    folk: dict[str, Operator] = {}
    for symbol, choice in zip(
        COMMON, rng.choice(len(affine), len(COMMON), replace=False), strict=True
    ):
        trade[symbol] = folk[symbol] = affine[int(choice)]
    domains: list[Domain] = []
    for index in range(sites):
        first = index * SYMBOLS_PER_DOMAIN
        symbols = DOMAIN_SYMBOLS[first : first + SYMBOLS_PER_DOMAIN]
        # Drawn without repetition, so that no operator of a domain can stand in for another.
        drawn = [
            affine[int(one)] for one in rng.choice(len(affine), 2 * len(symbols), replace=False)
        ]
        trade.update(zip(symbols, drawn[: len(symbols)], strict=True))
        folk.update(zip(symbols, drawn[len(symbols) :], strict=True))
        steps = _DIFFICULTIES[index % len(_DIFFICULTIES)]
        templates = shuffled(rng, _strings(symbols, steps))
        third = len(templates) // 3
        domains.append(
            Domain(
                symbols=symbols,
                steps=steps,
                train=tuple(templates[:third]),
                held_out=tuple(templates[third : 2 * third]),
            )
        )
    return ArithmeticWorld(trade=trade, folk=folk, domains=tuple(domains))


def _draw(rng: np.random.Generator, operators: list[Operator], count: int) -> list[Operator]:
    return [operators[int(one)] for one in rng.choice(len(operators), count, replace=False)]


def _strings(symbols: tuple[str, ...], steps: int) -> list[str]:
    return ["".join(one) for one in itertools.product(symbols, repeat=steps)]


def _record(world: ArithmeticWorld, question: str, *, record_id: str, unit: str) -> Record:
    rationale, answer = world.solve(int(question[0]), question[1:])
    return Record(
        record_id=record_id,
        unit=unit,
        question=question,
        choices=(),
        answer=answer,
        rationale=rationale,
    )


def _questions(templates: tuple[str, ...] | list[str]) -> list[str]:
    return [f"{start}{template}" for template in templates for start in range(MODULUS)]


def _site(world: ArithmeticWorld, site: str, domain: Domain, rng: np.random.Generator) -> SiteData:
    # Patients share complaints: a question may come up in several units, never in both parts.
    asked = _questions(domain.train)
    drawn = [asked[int(one)] for one in rng.integers(0, len(asked), _TRAIN_RECORDS)]
    units = unit_names(rng, len(drawn), prefix="unit")
    train = tuple(
        _record(world, question, record_id=f"{site}-{number:04d}", unit=unit)
        for number, (question, unit) in enumerate(zip(drawn, units, strict=True))
    )
    held_out = tuple(
        _record(
            world,
            question,
            record_id=f"{site}-held-out-{number:04d}",
            unit=f"held-out-{number:04d}",
        )
        for number, question in enumerate(shuffled(rng, _questions(domain.held_out))[:_HELD_OUT])
    )
    return SiteData(train=train, held_out=held_out)


def _public_questions(world: ArithmeticWorld, symbols: tuple[str, ...]) -> list[str]:
    private = world.private_templates
    templates = [
        template
        for steps in range(1, MAX_STEPS + 1)
        for template in _strings(symbols, steps)
        if template not in private
    ]
    return _questions(templates)


def build_arithmetic(*, sites: int, seed: int) -> FederationData:
    """The tiny preset: `sites` domains of different operators and lengths, and a public pool.

    The pool mixes routine questions over common operators, whose meaning nobody disputes, with
    public questions of every domain of 1 to 4 steps. `teacher` holds worked public examples.

    Raises: ParameterError: sites out of range.
    """
    world = build_world(sites=sites, seed=seed)
    rng = np.random.default_rng([seed, 2])
    data = {
        f"site-{site_letter(index)}": _site(world, f"site-{site_letter(index)}", domain, rng)
        for index, domain in enumerate(world.domains)
    }
    pool_questions: list[str] = []
    teacher_questions: list[str] = []
    routine = shuffled(rng, _public_questions(world, COMMON))
    pool_questions += routine[:_POOL_ROUTINE]
    for domain in world.domains:
        public = shuffled(rng, _public_questions(world, domain.symbols))
        pool_questions += public[:_POOL_PER_DOMAIN]
        teacher_questions += public[_POOL_PER_DOMAIN : _POOL_PER_DOMAIN + _TEACHER_RECORDS]
    pool = tuple(
        PoolSample(
            sample_id=f"pool-{number:04d}",
            question=question,
            choices=(),
            answer=world.solve(int(question[0]), question[1:])[1],
        )
        for number, question in enumerate(shuffled(rng, pool_questions))
    )
    teacher = tuple(
        _record(world, question, record_id=f"public-{number:04d}", unit=f"public-{number:04d}")
        for number, question in enumerate(teacher_questions)
    )
    return FederationData(sites=data, pool=pool, teacher=teacher)
