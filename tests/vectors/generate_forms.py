"""Answer forms and verifiers: what a model reads and writes, and how that is read back."""

from __future__ import annotations

from typing import Any

from lada_secure.data.forms import FORMS, FormName, answer_form
from lada_secure.data.verification import Rule, Verifier

CHOICES = ("gout", "gout. chronic", "B", "two\nlines")
PATHS = (
    *("", " gout. chronic. It lasts.", " gout", " B.", "B", " A\nIt hurts.", "C. B", "C. gout"),
    *("(D) two lines.", "E", "b", "A because", " It hurts.\nAnswer: A", "\nAnswer: C) B"),
    *(" So\nAnswer: B\nand so on", " Answer: A\n\u2028Answer: (D)\n", "Answer:", "\nanswer: A"),
)
OPEN_PATHS = ("", "so\n42", " so\nAnswer: 42 mg \n", "Answer:", "Answer: 1\n2")
VERDICTS: tuple[tuple[Rule, float, str, str], ...] = (
    ("exact", 0.0, "42", "42"),
    ("exact", 0.0, "42.", "42"),
    ("normalised", 0.0, " Gout. ", "gout"),
    ("normalised", 0.0, "\ufb01brosis", "Fibrosis"),
    ("normalised", 0.0, "4.0", "4"),
    ("numeric", 0.0, "1,234.0 MG", "1234 mg."),
    ("numeric", 0.0, "1,5", "15"),
    ("numeric", 0.0, "$.5", "0.5"),
    ("numeric", 0.0, "\u22123e2", "-300"),
    ("numeric", 0.0, "5 mg", "5 g"),
    ("numeric", 0.0, "1,5 mg", "1 5 mg"),
    ("numeric", 0.0, "5-6 mg", "5 6 mg"),
    ("numeric", 0.0, "5.0/min", "5 /min"),
    ("numeric", 0.0, "5.0 \u00b0C", "5\u2103"),
    ("numeric", 0.01, "101", "100"),
    ("numeric", 0.01, "102", "100"),
    ("numeric", 0.01, "0.01", "0"),
    ("numeric", 0.01, "none", "None."),
    ("numeric", 0.0, "9" * 40, "9" * 39 + "8"),
)


def form_vectors() -> dict[str, Any]:
    """One file. An empty reason stands for none."""
    return {
        "texts": [
            {
                "form": name,
                "question": "Kind of X?",
                "choices": list(choices),
                "answer": answer,
                "reason": reason,
                "prompt": answer_form(name).prompt("Kind of X?", choices),
                "target": answer_form(name).target(answer, choices, reason or None),
            }
            for name in FORMS
            for choices, answer in ((CHOICES, "gout. chronic"), (CHOICES, "B"), ((), "42 mg"))
            for reason in ("", "It lasts.\nAnswer: A")
        ],
        "read": [
            {
                "form": name,
                "choices": list(choices),
                "path": path,
                "answer": _read(name, path, choices),
            }
            for name in FORMS
            for choices, paths in ((CHOICES, PATHS), ((), OPEN_PATHS))
            for path in paths
        ],
        "verified": [
            {
                "rule": rule,
                "tolerance": tolerance,
                "given": given,
                "gold": gold,
                "right": Verifier(rule=rule, tolerance=tolerance).right(given, gold),
            }
            for rule, tolerance, given, gold in VERDICTS
        ],
    }


def _read(name: FormName, path: str, choices: tuple[str, ...]) -> str | None:
    return answer_form(name).answer(path, choices)
