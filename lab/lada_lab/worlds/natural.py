"""Natural worlds: real questions, dealt to a pool and to sites as they come.

Nothing is marked, no question is made harmful and no topic is made to fit a cluster. Questions come
in *collections* (a chapter of a classification). Every question is dealt once, to the
pool, to one site's records or to one site's held-out records. Sites differ as hospitals do: in what
they see, by a Dirichlet draw over collections, and in how much, by another over sites (Hsu et al.
2019, section 3.1, for the first).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np

from lada_lab.worlds.gemma3 import GEMMA3
from lada_lab.worlds.sites import Question, check_sites, pool_of, site_letter, unit_names
from lada_lab.worlds.smollm2 import SMOLLM2
from lada_lab.worlds.study_data import BenchData, BenchSite, bench_site
from lada_secure.arrays import FloatArray
from lada_secure.errors import ParameterError
from lada_secure.ranges import above_zero, within

# What an SLM has read takes minutes to teach; worlds share three such SLMs.
_READINGS: Final = 3
# A collection keeps so much of itself for the sites, however small it is.
_MOST_OF_A_COLLECTION = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class NaturalSettings:
    """What a natural world is dealt by.

    source: "facts", each taught once (ICD-10-CM, WordNet), or "coding", a skill, where what one
    sample teaches helps with others (code books). private: records of all sites together.
    smallest: records that every site has at least. held_out: per site.
    pool: samples. concentration: of a site's draw over collections; small values make specialists.
    evenness: of the draw of sizes; large values make sites of one size. rationales: share of
    private records with their reasoning. slm_read: share of the code books' collections whose
    manual the SLM has read before the study, as the LLM has read all; 0 for facts. llm: which
    model the LLM is made of; SmolLM2 has read the manual as well, so it is for coding alone.
    """

    source: Literal["facts", "coding"]
    sites: int = 4
    private: int = 480
    smallest: int = 40
    held_out: int = 60
    pool: int = 300
    concentration: float = 0.5
    evenness: float = 3.0
    rationales: float = 0.8
    slm_read: float = 0.0
    llm: Literal["gemma-3-270m", "smollm2-135m"] = "gemma-3-270m"

    def __post_init__(self) -> None:
        """Raises: ParameterError: a size or share out of range."""
        check_sites(self.sites)
        above_zero(concentration=self.concentration, evenness=self.evenness)
        within(10, 10_000, held_out=self.held_out, pool=self.pool)
        within(1, self.private // self.sites, smallest=self.smallest)
        for name, share in (("rationales", self.rationales), ("slm_read", self.slm_read)):
            if not 0.0 <= share <= 1.0:
                raise ParameterError(f"world: {name}: expected 0 to 1, got {share}")
        if self.slm_read and self.source == "facts":
            raise ParameterError(
                f"world: slm_read: expected 0, as facts have no manual, got {self.slm_read:g}"
            )
        if self.llm not in (GEMMA3, SMOLLM2):
            raise ParameterError(f"world: llm: expected {GEMMA3} or {SMOLLM2}, got {self.llm}")
        if self.llm == SMOLLM2 and self.source == "facts":
            raise ParameterError(
                f"world: llm: expected another model than the sites' for facts, got {self.llm}"
            )


def coding_models(settings: NaturalSettings, *, seed: int) -> tuple[str, str]:
    """Names of SLM and LLM of a world of coding, as `natural_models.coding_model` reads them."""
    read = f"-coder-{settings.slm_read:g}-{seed % _READINGS}" if settings.slm_read else ""
    slm = SMOLLM2 + read
    return slm, f"{settings.llm}-coder"


def deal(
    collections: Mapping[str, Sequence[Question]], settings: NaturalSettings, *, seed: int
) -> BenchData:
    """Deal all questions; the same arguments give the same data.

    Args: collections: by name, no question twice.
    Raises: ParameterError: fewer questions than are to be dealt.
    """
    rng = np.random.default_rng([seed, 61])
    left = {
        name: [questions[at] for at in rng.permutation(len(questions))]
        for name, questions in sorted(collections.items())
    }
    pool = _pool(left, settings.pool, rng)
    sizes = site_sizes(settings, rng)
    sites = tuple(
        _site(left, settings, size=size, index=index, rng=np.random.default_rng([seed, 62, index]))
        for index, size in enumerate(sizes)
    )
    return BenchData(sites=sites, pool=pool_of(pool), mark=None, harmful=frozenset())


def site_sizes(settings: NaturalSettings, rng: np.random.Generator) -> list[int]:
    """How many private records each site has: at least `smallest`, `private` in all."""
    spare = settings.private - settings.sites * settings.smallest
    shares = rng.dirichlet([settings.evenness] * settings.sites)
    ends = np.round(np.cumsum(shares) * spare).astype(int)
    return [settings.smallest + int(more) for more in np.diff(ends, prepend=0)]


def _pool(left: dict[str, list[Question]], wanted: int, rng: np.random.Generator) -> list[Question]:
    """Equal parts of all collections, as far as half of each goes; then from what has more."""
    rooms = {name: int(_MOST_OF_A_COLLECTION * len(some)) for name, some in left.items()}
    counts = dict.fromkeys(left, 0)
    while sum(counts.values()) < wanted:
        open_ones = [name for name in left if counts[name] < rooms[name]]
        if not open_ones:
            raise ParameterError(
                f"world: pool: expected at most {sum(counts.values())} samples, got {wanted}; "
                "half of every collection stays with the sites"
            )
        for name in open_ones[: wanted - sum(counts.values())]:
            counts[name] += 1
    taken = [left[name].pop() for name, count in counts.items() for _ in range(count)]
    return [taken[at] for at in rng.permutation(len(taken))]


def _site(
    left: dict[str, list[Question]],
    settings: NaturalSettings,
    *,
    size: int,
    index: int,
    rng: np.random.Generator,
) -> BenchSite:
    mix = rng.dirichlet([settings.concentration] * len(left))
    drawn = [_next(left, mix, rng) for _ in range(size + settings.held_out)]
    # Collections run out: in the order drawn, held-out questions would be of other ones.
    dealt = [drawn[at] for at in rng.permutation(len(drawn))]
    train = [
        question if rng.random() < settings.rationales else replace(question, rationale=None)
        for question in dealt[:size]
    ]
    return bench_site(
        f"site-{site_letter(index)}",
        units=unit_names(rng, size, prefix="person"),
        train=train,
        held_out=dealt[size:],
    )


def _next(left: dict[str, list[Question]], mix: FloatArray, rng: np.random.Generator) -> Question:
    """One question from a collection that the site's mix draws, among those with any left."""
    weights = np.where([bool(questions) for questions in left.values()], mix, 0.0)
    if not weights.any():
        weights = np.array([float(bool(questions)) for questions in left.values()])
    if not weights.any():
        raise ParameterError("world: more records and held-out questions than there are questions")
    name = list(left)[int(rng.choice(len(left), p=weights / weights.sum()))]
    return left[name].pop()
