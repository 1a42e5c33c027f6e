"""The plain words of a privacy report, for readers of contracts rather than of code."""

from __future__ import annotations

import math

DECISIONS = {"approve": "approved", "refuse": "refused", "withdraw": "withdrew"}

MECHANISMS = {
    "discrete_gaussian": "Noise added to whole numbers",
    "dp_sgd": (
        "Training in which each person's influence on every step is cut to a fixed size and noise "
        "is added to the sum"
    ),
}

NOISES = {
    "discrete_gaussian": "exact discrete Gaussian noise",
    "float_gaussian": (
        "Gaussian noise in floating-point numbers, whose rounding the proof does not cover"
    ),
}

_WHAT_LEFT = {
    "statistics": (
        "A noised count of records, and of how badly the site's model does on them, per public "
        "topic. It left sealed and was opened only as a sum over several sites. Which public "
        "questions the site wanted was computed from it, at no further cost."
    ),
    "training": (
        "A small model trained on the site's records. The model itself stays at the site; what is "
        "computed from it about public questions may leave, at no further cost."
    ),
    "trials": (
        "By how much models that were trained on public texts suit the site's records, as noised "
        "sums per public topic. The sums stay at the site; which public questions it wants and "
        "learns from is decided by them, at no further cost."
    ),
}

TERMS = (
    (
        "Epsilon",
        "How much whatever left can tell about one person at most. 0 tells nothing; every 1 more "
        "multiplies the best odds that an observer can reach by 2.7. Several releases together "
        "cost less than the sum of each; what they cost is recomputed here.",
    ),
    (
        "Delta",
        "The small probability with which the statement about epsilon may fail. It should be far "
        "below one over the number of people.",
    ),
    (
        "Unit",
        "Who is protected as a whole, with all records: one patient, one customer. Adding or "
        "removing one unit is what must not show.",
    ),
    (
        "Payment",
        "A ledger entry made before a record is read. It counts as spent even if nothing left "
        "afterwards, so a crash can only make the ledger say too much.",
    ),
    (
        "Cap",
        "The most that the site itself allows, for one study and for all studies over the same "
        "people.",
    ),
    (
        "Sum",
        "Sites' numbers added up while they are encrypted. No party sees a single site's numbers.",
    ),
)

CANNOT_TELL = (
    "Whether a site really added the noise that its ledger names: the ledger is its signed "
    "statement, and its people and software are trusted with its own records.",
    "What leaves by other ways than this software, or shows in how long things take.",
    "Whether settings were tuned on the records beforehand; that would not be in the ledger.",
    "Whether roster and certificates are the right ones: compare their hashes with those that "
    "the sites agreed on.",
)


def what_left(purpose: str) -> str:
    """What releases of a purpose are."""
    return _WHAT_LEFT.get(purpose, "See the study's plan for what this purpose is.")


def certainty(epsilon: float) -> str:
    """How sure somebody can become who held it for an even chance: exp(eps) / (1 + exp(eps))."""
    share = 1.0 / (1.0 + math.exp(-epsilon))
    return "over 99.9%" if share > 0.999 else f"{100.0 * share:.1f}%"
