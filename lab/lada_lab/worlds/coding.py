"""Coding: the letter of a diagnosis in ICD-10-CM, the code range of a merchant in ISO 18245.

A skill rather than facts: a few worked samples of a chapter teach its code for all its diagnoses,
because which ones belong together a language model knows already. Both code books are real, and no
small model knows them by heart.

A fifth of all entries, whichever world is drawn, is the *manual*: public worked examples from which
the LLM learns the code books, imperfectly, and that no pool and no site holds.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Final

import iso18245

from lada_lab.worlds.medical import CHAPTERS, read_icd10
from lada_lab.worlds.sites import Question

# Beyond what `medical` asks about. The one that both have is written as part of every rationale, so
# it is short.
_CHAPTERS: Final = {
    **CHAPTERS,
    "4": "endocrine and metabolic",
    "7": "eye",
    "8": "ear",
    "16": "newborn",
    "17": "congenital malformations",
    "18": "symptoms and findings",
    "19": "injury and poisoning",
    "20": "external causes",
    "21": "health services",
}
# Parts of the range that ISO 18245 leaves to card schemes, which all use them alike.
_PRIVATE_RANGES: Final = (
    (3000, 3299, "airlines"),
    (3300, 3499, "car rental"),
    (3500, 3999, "lodging"),
)
_MAX_TITLE: Final = 56
# A range with fewer merchants cannot be dealt to a pool, a manual and several sites.
_LEAST_MERCHANTS: Final = 12
_VAGUE = re.compile(r"\b(unspecified|elsewhere)\b", re.IGNORECASE)
_SUBCATEGORY_LENGTH: Final = 5
_MANUAL_SHARE: Final = 5


def coding_collections() -> Mapping[str, tuple[Question, ...]]:
    """Diagnoses by chapter and merchants by range, without the manual.

    Raises: ParameterError: ICD-10-CM is missing, with what to install.
    """
    return {
        name: tuple(asked for asked in questions if not _in_manual(asked))
        for name, questions in _collections().items()
    }


def manual(*, per_collection: int) -> Mapping[str, tuple[Question, ...]]:
    """Worked examples by collection, the same for every world."""
    return {
        name: tuple([one for one in questions if _in_manual(one)][:per_collection])
        for name, questions in _collections().items()
    }


def _in_manual(asked: Question) -> bool:
    """By a hash, so that it depends on nothing but the entry."""
    return hashlib.sha256(asked.question.encode()).digest()[0] % _MANUAL_SHARE == 0


def _collections() -> dict[str, list[Question]]:
    found: dict[str, list[Question]] = defaultdict(list)
    seen: set[str] = set()
    for name, asked in (*_diagnoses(), *_merchants()):
        if asked.question not in seen:
            seen.add(asked.question)
            found[name].append(asked)
    return {name: some for name, some in found.items() if len(some) >= _LEAST_MERCHANTS}


def _diagnoses() -> Iterator[tuple[str, Question]]:
    """One code of every subcategory, as `medical.diagnosis_topics` takes them."""
    icd = read_icd10()
    for chapter, name in sorted(_CHAPTERS.items(), key=lambda one: int(one[0])):
        subcategories: set[str] = set()
        for code in sorted(icd.get_descendants(chapter)):
            title = icd.get_description(code)
            subcategory = code[:_SUBCATEGORY_LENGTH]
            if not icd.is_leaf(code) or subcategory in subcategories or not _usable(title):
                continue
            subcategories.add(subcategory)
            question = f"Diagnosis: {title}. Code letter?"
            yield name, Question(question=question, answer=code[0], rationale=name)


def _merchants() -> Iterator[tuple[str, Question]]:
    for merchant in iso18245.get_all_mccs():
        names = (
            merchant.iso_description,
            merchant.mastercard_description,
            merchant.visa_description,
            merchant.usda_description,
        )
        title = next((name for name in names if name), "")
        if not _usable(title):
            continue
        name, code = _range_of(int(merchant.mcc), merchant.range)
        title = title.capitalize() if title.isupper() else title
        question = f"Merchant: {title}. Code range?"
        yield name, Question(question=question, answer=code, rationale=name)


def _range_of(code: int, official: iso18245.MCCRange) -> tuple[str, str]:
    """What a merchant's range is called, and its first and last code."""
    for first, last, name in _PRIVATE_RANGES:
        if first <= code <= last:
            return name, f"{first}-{last}"
    return official.description.lower(), f"{official.start}-{official.end}"


def _usable(title: str) -> bool:
    return 0 < len(title) <= _MAX_TITLE and _VAGUE.search(title) is None
