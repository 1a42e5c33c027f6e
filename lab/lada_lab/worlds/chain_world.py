"""The benchmark's world: houses with words of their own, and a public that uses them otherwise.

Questions are chains of affine operators modulo 10, as in `lada_lab.worlds.arithmetic`, but every
operator symbol has several *senses*. A house (one site) always means sense 0 of its own symbols.
General text, which the SLM has read, mixes all senses, so the SLM can reason and does not know
what a house means. Public questions come in two manners: written plainly they mean sense 0;
with a mark in front (`Z4fgh`) the public means sense 1. Inside a house the mark says nothing: half
of the private records carry it, and mean sense 0.

A marked pool sample about a house's symbols is therefore *harmful* to that house: its gold answer
and the LLM's reasoning are right by the public's use, pass every check against the gold answer, and
contradict the house's own records.

One symbol of each house is *in-house*: the LLM has seen all its senses, so that the sites have
something to teach it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lada_lab.worlds.arithmetic import (
    COMMON,
    DOMAIN_SYMBOLS,
    MODULUS,
    Operator,
    draw_operators,
    templates_over,
)
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

# Beyond the symbols of the largest federation (12 houses of 4 symbols do not reach it).
MARK = DOMAIN_SYMBOLS[-1]
PLAIN_SYMBOLS = 3
HOUSE_SYMBOLS = PLAIN_SYMBOLS + 1
LONGEST = 4
HOUSE_SENSE, STREET_SENSE = 0, 1


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldSettings:
    """Sizes and shares; the defaults are the paper's shape (Guo et al. 2026).

    private, held_out: records per site. pool: public samples in all. harmful: share of the pool
    that is marked questions about house symbols, in [0, 0.6]. routine: share of the rest that is
    about common symbols, which every SLM knows. senses: meanings per house symbol, 2 to 6.
    marked: share of private questions with the mark. in_house: share of private and plain house
    questions that use the house's in-house symbol. rationales: share of private records with
    their reasoning; the others have the answer alone. familiar: share of private questions about
    common symbols, which no study needs to teach.
    """

    sites: int = 3
    private: int = 1000
    held_out: int = 500
    pool: int = 1000
    harmful: float = 0.3
    routine: float = 0.35
    senses: int = 3
    marked: float = 0.5
    in_house: float = 0.3
    rationales: float = 0.2
    familiar: float = 0.0

    def __post_init__(self) -> None:
        check_sites(self.sites)
        shares = {
            "harmful": (self.harmful, 0.6),
            "routine": (self.routine, 0.9),
            "marked": (self.marked, 1.0),
            "in_house": (self.in_house, 0.9),
            "rationales": (self.rationales, 1.0),
            "familiar": (self.familiar, 0.9),
        }
        for name, (share, most) in shares.items():
            if not 0.0 <= share <= most:
                raise ParameterError(f"world: {name}: expected 0 to {most:g}, got {share}")
        if not 2 <= self.senses <= 6:
            raise ParameterError(f"world: senses: expected 2 to 6, got {self.senses}")
        for name, size in (
            ("private", self.private),
            ("held_out", self.held_out),
            ("pool", self.pool),
        ):
            if not 10 <= size <= 100_000:
                raise ParameterError(f"world: {name}: expected 10 to 100,000, got {size}")


@dataclass(frozen=True, slots=True, kw_only=True)
class House:
    """One site's symbols and its private templates, all of `LONGEST` steps.

    The last of `symbols` is the in-house one. `train` and `held_out` are disjoint, and no public
    text holds any of them as a whole question.
    """

    symbols: tuple[str, ...]
    train: tuple[str, ...]
    held_out: tuple[str, ...]

    @property
    def in_house(self) -> str:
        """The symbol whose house sense the LLM does not know."""
        return self.symbols[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchWorld:
    """What every symbol means in each sense, and the houses.

    familiar_train, familiar_held_out: templates over common symbols that records have, none where
    no record is about them.
    """

    senses: Mapping[str, tuple[Operator, ...]]
    houses: tuple[House, ...]
    familiar_train: tuple[str, ...] = ()
    familiar_held_out: tuple[str, ...] = ()

    @property
    def private_templates(self) -> frozenset[str]:
        """Templates that no public question may have."""
        own = [one for house in self.houses for one in house.train + house.held_out]
        return frozenset((*own, *self.familiar_train, *self.familiar_held_out))

    def solve(self, start: int, template: str, sense: Sequence[int]) -> tuple[str, str]:
        """Rationale and answer; `sense` has one entry per step (common symbols have one).

        Returns: for example ("f9g7", "7").
        """
        digit = start
        steps: list[str] = []
        for symbol, which in zip(template, sense, strict=True):
            meanings = self.senses[symbol]
            digit = meanings[which % len(meanings)].apply(digit)
            steps.append(f"{symbol}{digit}")
        return "".join(steps), str(digit)

    def asked(self, question: str, *, inside: bool) -> Question:
        """A question with the path and answer that a house (`inside`) or the public stands by."""
        marked = question.startswith(MARK)
        plain = question.removeprefix(MARK)
        sense = STREET_SENSE if marked and not inside else HOUSE_SENSE
        rationale, answer = self.solve(int(plain[0]), plain[1:], [sense] * (len(plain) - 1))
        return Question(question=question, answer=answer, rationale=rationale)


def build_world(settings: WorldSettings, *, seed: int) -> BenchWorld:
    """Draw the senses of all symbols and split each house's templates."""
    rng = np.random.default_rng([seed, 31])
    senses: dict[str, tuple[Operator, ...]] = {
        symbol: (meaning,)
        for symbol, meaning in zip(COMMON, draw_operators(rng, len(COMMON)), strict=True)
    }
    houses: list[House] = []
    for index in range(settings.sites):
        first = index * HOUSE_SYMBOLS
        symbols = DOMAIN_SYMBOLS[first : first + HOUSE_SYMBOLS]
        # All different, so that no sense of one symbol can stand in for another symbol's.
        meanings = draw_operators(rng, settings.senses * HOUSE_SYMBOLS)
        for number, symbol in enumerate(symbols):
            start = number * settings.senses
            senses[symbol] = meanings[start : start + settings.senses]
        plain = templates_over(symbols[:-1], LONGEST)
        with_own = [one for one in templates_over(symbols, LONGEST) if one.count(symbols[-1]) == 1]
        rng_templates = np.random.default_rng([seed, 32, index])
        usual, special = shuffled(rng_templates, plain), shuffled(rng_templates, with_own)
        third, part = len(usual) // 3, len(special) // 3
        houses.append(
            House(
                symbols=symbols,
                train=(*usual[:third], *special[:part]),
                held_out=(*usual[third : 2 * third], *special[part : 2 * part]),
            )
        )
    if not settings.familiar:
        return BenchWorld(senses=senses, houses=tuple(houses))
    common = shuffled(np.random.default_rng([seed, 35]), templates_over(COMMON, LONGEST))
    part = len(common) // 3
    return BenchWorld(
        senses=senses,
        houses=tuple(houses),
        familiar_train=tuple(common[:part]),
        familiar_held_out=tuple(common[part : 2 * part]),
    )


def build_data(settings: WorldSettings, *, seed: int) -> BenchData:
    """Everything a simulated study starts from; the same arguments give the same data."""
    world = build_world(settings, seed=seed)
    sites = tuple(
        _site(world, house, settings, index=index, seed=seed)
        for index, house in enumerate(world.houses)
    )
    rng = np.random.default_rng([seed, 34])
    questions = _pool_questions(world, settings, rng)
    pool = pool_of(
        world.asked(questions[place], inside=False) for place in rng.permutation(len(questions))
    )
    harmful = frozenset(
        place for place, sample in enumerate(pool) if sample.question.startswith(MARK)
    )
    return BenchData(sites=sites, pool=pool, mark=MARK, harmful=harmful)


def _site(
    world: BenchWorld, house: House, settings: WorldSettings, *, index: int, seed: int
) -> BenchSite:
    rng = np.random.default_rng([seed, 33, index])

    def questions(
        templates: Sequence[str], familiar: Sequence[str], count: int
    ) -> Iterator[Question]:
        usual = [template for template in templates if house.in_house not in template]
        special = [template for template in templates if house.in_house in template]
        for _ in range(count):
            # No draw where there are none, so that other worlds stay as they are.
            known = bool(familiar) and rng.random() < settings.familiar
            group: Sequence[str] = familiar
            if not known:
                group = special if rng.random() < settings.in_house else usual
            template = group[int(rng.integers(len(group)))]
            mark = MARK if not known and rng.random() < settings.marked else ""
            asked = world.asked(f"{mark}{int(rng.integers(MODULUS))}{template}", inside=True)
            told = rng.random() < settings.rationales
            yield asked if told else replace(asked, rationale=None)

    return bench_site(
        f"site-{site_letter(index)}",
        units=unit_names(rng, settings.private, prefix="unit"),
        train=questions(house.train, world.familiar_train, settings.private),
        held_out=questions(house.held_out, world.familiar_held_out, settings.held_out),
    )


def _pool_questions(
    world: BenchWorld, settings: WorldSettings, rng: np.random.Generator
) -> list[str]:
    """Marked, routine and plain house questions, in that order, none twice."""
    harmful = round(settings.harmful * settings.pool)
    routine = round(settings.routine * (settings.pool - harmful))
    plain = settings.pool - harmful - routine
    questions: list[str] = []
    for count, mark in ((harmful, MARK), (plain, "")):
        for index, house in enumerate(world.houses):
            share = count // len(world.houses) + (index < count % len(world.houses))
            questions += _house_questions(world, house, settings, share, mark, rng)
    templates = [one for one in _all_lengths(COMMON) if one not in world.private_templates]
    common = [f"{start}{one}" for one in templates for start in range(MODULUS)]
    return questions + _first(shuffled(rng, common), routine, "routine pool samples")


def _all_lengths(symbols: Sequence[str]) -> list[str]:
    return [one for steps in range(1, LONGEST + 1) for one in templates_over(symbols, steps)]


def _house_questions(
    world: BenchWorld,
    house: House,
    settings: WorldSettings,
    count: int,
    mark: str,
    rng: np.random.Generator,
) -> list[str]:
    private = world.private_templates
    templates = [one for one in _all_lengths(house.symbols) if one not in private]
    usual = [one for one in templates if house.in_house not in one]
    special = [one for one in templates if one.count(house.in_house) == 1]
    # The street has no use for in-house words.
    own = 0 if mark else round(settings.in_house * count)
    found: list[str] = []
    for group, wanted in ((special, own), (usual, count - own)):
        asked = [f"{mark}{start}{one}" for one in group for start in range(MODULUS)]
        found += _first(shuffled(rng, asked), wanted, "pool samples about one house")
    return found


def _first(items: list[str], count: int, what: str) -> list[str]:
    if count > len(items):
        raise ParameterError(
            f"world: {count} {what} wanted, only {len(items)} exist; use a smaller pool"
        )
    return items[:count]


def general_question(
    world: BenchWorld, steps: int, rng: np.random.Generator, *, marked: float
) -> str:
    """A random public question over the symbols of one house and the common ones."""
    private = world.private_templates
    house = world.houses[int(rng.integers(len(world.houses)))]
    symbols = [*COMMON, *house.symbols]
    while True:
        drawn: list[int] = rng.integers(0, len(symbols), steps).tolist()
        template = "".join(symbols[one] for one in drawn)
        if template not in private:
            break
    mark = MARK if rng.random() < marked else ""
    return f"{mark}{int(rng.integers(MODULUS))}{template}"
