"""Where a dialling party keeps what belongs to one study, and finds it again.

The state folder itself outlives studies: the ledger, its key for fingerprints, the auditor's copies
and what it has opened. Everything else lies in one folder per study and plan, so that no study ever
reads what another one has left.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from lada_protocol.evidence.export import PLAN_FILE
from lada_secure.errors import ParameterError

STUDIES: Final = "studies"


def study_folder(state_dir: Path, study_id: str, plan_hash: str) -> Path:
    """The folder of one study under one plan; it need not be there yet."""
    return state_dir / STUDIES / f"{study_id}-{plan_hash[:16]}"


def find_study_folder(state_dir: Path, study: str | None) -> Path:
    """The folder of a study that a party took part in.

    Args: study: its id, or its folder's name where one id had several plans; it may be left out
        where there is one study only.
    Raises: ParameterError: none, or several.
    """
    found = sorted(one.parent for one in (state_dir / STUDIES).glob(f"*/{PLAN_FILE}"))
    if study is not None:
        found = [one for one in found if study in (one.name, one.name[:-17])]
    if len(found) == 1:
        return found[0]
    if not found:
        which = "study" if study is None else f"study {study}"
        raise ParameterError(f"{state_dir / STUDIES}: no {which} here yet")
    names = ", ".join(one.name for one in found)
    raise ParameterError(f"{state_dir / STUDIES} holds several studies; name one: {names}")
