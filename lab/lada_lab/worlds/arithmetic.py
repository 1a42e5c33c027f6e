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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

import numpy as np

from lada_lab.worlds.sites import (
    FederationData,
    Question,
    SiteData,
    check_sites,
    numbered,
    pool_of,
    records_of,
    shuffled,
    site_letter,
    unit_names,
)

MODULUS = 10
SYMBOLS_PER_DOMAIN = 3
COMMON = ("x", "y", "z")
DOMAIN_SYMBOLS = tuple(letter for letter in string.ascii_letters if letter not in COMMON)
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


# All but the identity.
OPERATORS = tuple(
    Operator(multiplier=multiplier, offset=offset)
    for multiplier, offset in itertools.product(_MULTIPLIERS, range(MODULUS))
    if (multiplier, offset) != (1, 0)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """One site's operators and the split of its templates.

    `train` and `held_out` hold the private templates, all of the same number of operators; every
    other string over `symbols` is public.
    """

    symbols: tuple[str, ...]
    train: tuple[str, ...]
    held_out: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ArithmeticWorld:
    """What every operator means, in the trade and in the street, and each site's domain."""

    trade: Mapping[str, Operator]
    folk: Mapping[str, Operator]
    domains: tuple[Domain, ...]

    @cached_property
    def private_templates(self) -> frozenset[str]:
        """Templates that no public text may contain as a whole question."""
        return frozenset(
            template for domain in self.domains for template in domain.train + domain.held_out
        )

    def solve(
        self, start: int, template: str, speech: Sequence[Speech] | None = None
    ) -> tuple[str, str]:
        """Rationale and answer of the question `start` + `template`.

        Args: start: 0 to 9. template: known operators. speech: the meaning of each step's operator;
            by default the trade's.
        Returns: for example ("f9g7", "7").
        """
        digit = start
        steps: list[str] = []
        for symbol, kind in zip(template, speech or ["trade"] * len(template), strict=True):
            digit = (self.trade if kind == "trade" else self.folk)[symbol].apply(digit)
            steps.append(f"{symbol}{digit}")
        return "".join(steps), str(digit)

    def asked(self, question: str) -> Question:
        """A question with its reasoning and answer in the trade's meaning."""
        rationale, answer = self.solve(int(question[0]), question[1:])
        return Question(question=question, answer=answer, rationale=rationale)


def draw_operators(rng: np.random.Generator, count: int) -> tuple[Operator, ...]:
    """Different operators, so that none can stand in for another."""
    return tuple(
        OPERATORS[int(index)] for index in rng.choice(len(OPERATORS), count, replace=False)
    )


def templates_over(symbols: Sequence[str], steps: int) -> list[str]:
    """All strings of so many operators."""
    return ["".join(template) for template in itertools.product(symbols, repeat=steps)]


def build_world(*, sites: int, seed: int) -> ArithmeticWorld:
    """Draw the operators' meanings and split each domain's templates in three equal parts.

    Args: sites: 3 to 12, one domain each. seed: >= 0.
    Raises: ParameterError: sites out of range.
    """
    check_sites(sites)
    rng = np.random.default_rng([seed, 1])
    trade = dict(zip(COMMON, draw_operators(rng, len(COMMON)), strict=True))
    folk = dict(trade)
    domains: list[Domain] = []
    for index in range(sites):
        first = index * SYMBOLS_PER_DOMAIN
        symbols = DOMAIN_SYMBOLS[first : first + SYMBOLS_PER_DOMAIN]
        drawn = draw_operators(rng, 2 * len(symbols))
        trade.update(zip(symbols, drawn[: len(symbols)], strict=True))
        folk.update(zip(symbols, drawn[len(symbols) :], strict=True))
        steps = _DIFFICULTIES[index % len(_DIFFICULTIES)]
        templates = tuple(shuffled(rng, templates_over(symbols, steps)))
        third = len(templates) // 3
        domains.append(
            Domain(symbols=symbols, train=templates[:third], held_out=templates[third : 2 * third])
        )
    return ArithmeticWorld(trade=trade, folk=folk, domains=tuple(domains))


def _questions(templates: Iterable[str]) -> list[str]:
    return [f"{start}{template}" for template in templates for start in range(MODULUS)]


def _site(world: ArithmeticWorld, site: str, domain: Domain, rng: np.random.Generator) -> SiteData:
    # Patients share complaints: a question may come up in several units, never in both parts.
    asked = _questions(domain.train)
    drawn = [asked[int(index)] for index in rng.integers(0, len(asked), _TRAIN_RECORDS)]
    units = unit_names(rng, len(drawn), prefix="unit")
    held_out = shuffled(rng, _questions(domain.held_out))[:_HELD_OUT]
    return SiteData(
        train=records_of(map(world.asked, drawn), units, prefix=site),
        held_out=records_of(
            map(world.asked, held_out),
            numbered("held-out", len(held_out)),
            prefix=f"{site}-held-out",
        ),
    )


def _public_questions(world: ArithmeticWorld, symbols: tuple[str, ...]) -> list[str]:
    return _questions(
        template
        for steps in range(1, MAX_STEPS + 1)
        for template in templates_over(symbols, steps)
        if template not in world.private_templates
    )


def build_arithmetic(*, sites: int, seed: int) -> FederationData:
    """The tiny preset: `sites` domains of different operators and lengths, and a public pool.

    The pool mixes routine questions over common operators, whose meaning nobody disputes, with
    public questions of every domain of 1 to 4 steps. `teacher` holds worked public examples.

    Raises: ParameterError: sites out of range.
    """
    world = build_world(sites=sites, seed=seed)
    rng = np.random.default_rng([seed, 2])
    data: dict[str, SiteData] = {}
    for index, domain in enumerate(world.domains):
        site = f"site-{site_letter(index)}"
        data[site] = _site(world, site, domain, rng)
    pool = shuffled(rng, _public_questions(world, COMMON))[:_POOL_ROUTINE]
    teacher: list[str] = []
    for domain in world.domains:
        public = shuffled(rng, _public_questions(world, domain.symbols))
        pool += public[:_POOL_PER_DOMAIN]
        teacher += public[_POOL_PER_DOMAIN : _POOL_PER_DOMAIN + _TEACHER_RECORDS]
    return FederationData(
        sites=data,
        pool=pool_of(map(world.asked, shuffled(rng, pool))),
        teacher=records_of(
            map(world.asked, teacher), numbered("public", len(teacher)), prefix="public"
        ),
    )
