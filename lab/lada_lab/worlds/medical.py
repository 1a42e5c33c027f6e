"""Medical topics: diagnoses of ICD-10-CM with their groups.

A diagnosis' chain of ancestors is its rationale.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from lada_lab.worlds.multiple_choice import Topic
from lada_secure.errors import ParameterError

# What the hospitals treat: chapters of ICD-10-CM by the name that a path gives them.
CHAPTERS = {
    "1": "infections",
    "2": "neoplasms",
    "3": "blood and immunity",
    "4": "endocrine and metabolic diseases",
    "5": "mental disorders",
    "6": "nervous system",
    "9": "circulatory system",
    "10": "respiratory system",
    "11": "digestive system",
    "12": "skin",
    "13": "musculoskeletal system",
    "14": "genitourinary system",
    "15": "pregnancy and childbirth",
}
# One entry per hospital; chapters of about equal weight together.
SPECIALITIES: tuple[tuple[str, ...], ...] = (
    ("4", "9"),
    ("10", "11"),
    ("5", "6"),
    ("1",),
    ("12", "13"),
    ("14", "15"),
    ("2", "3"),
)

_MAX_DIAGNOSIS = 56
_MAX_GROUP = 48
_MAX_CATEGORY = 36
# Such titles name what is left over, so nothing in them tells what belongs there.
_VAGUE = re.compile(r"\b(other|unspecified|elsewhere)\b", re.IGNORECASE)
_RANGE = re.compile(r" \([A-Z0-9]+-[A-Z0-9]+\)$")
_LEFT_OVER = re.compile(r"^other\b", re.IGNORECASE)
# Left and right, or with and without: one subcategory, one topic.
_SUBCATEGORY_LENGTH = 5


def diagnosis_topics(chapters: Sequence[str]) -> tuple[Topic, ...]:
    """Which group of ICD-10-CM a diagnosis belongs to, one topic per four-character subcategory.

    Only one code of a subcategory is used, so that hold-out by code cannot leave the same disease
    of the other side, or with another complication, in both parts.

    Args: chapters: keys of `CHAPTERS`.
    Returns: topics ordered by code.
    Raises: ParameterError: the package simple-icd-10-cm is missing.
    """
    icd = read_icd10()
    topics: list[Topic] = []
    seen_subcategories: set[str] = set()
    seen_diagnoses: set[str] = set()
    for chapter in chapters:
        for code in sorted(icd.get_descendants(chapter)):
            subcategory = code[:_SUBCATEGORY_LENGTH]
            if subcategory in seen_subcategories or not icd.is_leaf(code):
                continue
            diagnosis = icd.get_description(code)
            chain = icd.get_ancestors(code)
            # From the parent up to the chapter; the group is the last before the chapter.
            if len(chain) < 2 or _RANGE.search(icd.get_description(chain[-2])) is None:
                continue
            group = _group_name(icd.get_description(chain[-2]))
            category = icd.get_description(code[:3])
            if (
                len(diagnosis) > _MAX_DIAGNOSIS
                or len(group) > _MAX_GROUP
                or _VAGUE.search(diagnosis)
                or _LEFT_OVER.match(group)
                or diagnosis in seen_diagnoses
            ):
                continue
            seen_subcategories.add(subcategory)
            seen_diagnoses.add(diagnosis)
            steps = [CHAPTERS[chapter]]
            if category != diagnosis and len(category) <= _MAX_CATEGORY:
                steps.insert(0, category)
            topics.append(
                Topic(
                    key=f"icd10:{code}",
                    question=f"Diagnosis: {diagnosis}. Group?",
                    answer=group,
                    rationale=", ".join(steps),
                    forbidden=frozenset(),
                )
            )
    return tuple(topics)


def read_icd10() -> Any:
    """The package that holds ICD-10-CM. Raises: ParameterError: it is missing."""
    try:
        import simple_icd_10_cm
    except ImportError as error:
        raise ParameterError(
            "ICD-10-CM is missing: expected the package simple-icd-10-cm; "
            "run `pip install simple-icd-10-cm`"
        ) from error
    return simple_icd_10_cm


def _group_name(title: str) -> str:
    """A group's title without its range of codes and without "not elsewhere classified"."""
    return _RANGE.sub("", title).removesuffix(", not elsewhere classified")
