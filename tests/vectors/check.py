"""Checks the test vectors from SPEC.md alone: standard library and `cryptography`, nothing else.

Run `python tests/vectors/check.py protocol/vectors`. It exits 1 and says which file and value is
wrong. It shares no code with the implementation, on purpose: where both agree, the page is right.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from check_forms import check_forms
from check_ledger import check_ledger
from check_numbers import (
    check_masks,
    check_parameters,
    check_plan,
)
from check_rings import check_scores, check_sealed
from check_text import (
    WrongVectorError,
    check_canonical_json,
    check_envelopes,
    check_transcripts,
)

CHECKS: dict[str, Callable[[Any], None]] = {
    "canonical_json.json": check_canonical_json,
    "envelope.json": check_envelopes,
    "plan.json": check_plan,
    "forms.json": check_forms,
    "parameters.json": check_parameters,
    "masks.json": check_masks,
    "ledger.json": check_ledger,
    "transcript.json": check_transcripts,
    "sealed.json": check_sealed,
    "scores.json": check_scores,
}


def check_file(name: str, raw: bytes) -> None:
    """Check one vector file.

    Raises: WrongVectorError.
    """
    try:
        CHECKS[name](json.loads(raw))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, StopIteration) as error:
        raise WrongVectorError(f"{type(error).__name__}: {error}") from error


def main(folder: Path) -> int:
    """Check all files of a folder; the number of bad ones."""
    bad = 0
    for name in CHECKS:
        try:
            check_file(name, (folder / name).read_bytes())
            print(f"ok     {name}")
        except (WrongVectorError, OSError) as error:
            bad += 1
            print(f"WRONG  {name}: {error}")
    return bad


if __name__ == "__main__":
    sys.exit(1 if main(Path(sys.argv[1])) else 0)
