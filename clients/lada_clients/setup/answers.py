"""What `lada init` puts into settings where nobody says otherwise, and how it reads answers."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from lada_protocol.party_templates import NO_ROSTER, Answer
from lada_secure.errors import ParameterError

# Both sides of a study: the coordinator's proposal keeps to what a site's policy recommends.
DELTA: Final = 1e-5
EPSILON: Final = 4.0
STUDIES_IN_ALL: Final = 2
RECORDS_OF_ONE_PERSON: Final = 2
_SAMPLING_PROBABILITY: Final = 0.04
_LEAST_BOUND_ON_PEOPLE: Final = 2000
_VALID_DAYS: Final = 30.0
# Most tokens of a rationale.
_SHORT_TOKENS: Final = 24
_REASONED_TOKENS: Final = 256
_MOST_THREADS: Final = 256
_CACHE: Final = "~/.cache/lada-secure"


def cores() -> int:
    """Threads that this machine gives one party."""
    return min(len(os.sched_getaffinity(0)), _MOST_THREADS)


def party_answers(party: str, passphrase_file: Path | None) -> dict[str, Answer]:
    """What every role's templates ask for."""
    return {
        "party": party,
        "roster_sha256": NO_ROSTER,
        "passphrase_file": None if passphrase_file is None else str(passphrase_file.absolute()),
    }


def policy_answers() -> dict[str, Answer]:
    """What a policy recommends beside its caps."""
    return {"target_delta": DELTA, "max_records_per_unit": RECORDS_OF_ONE_PERSON}


def study_answers(*, people: int, answer_form: str) -> dict[str, Answer]:
    """What a study's size follows from. Args: people: at a typical site, public."""
    return {
        **policy_answers(),
        "epsilon_cap": EPSILON,
        "valid_days": _VALID_DAYS,
        "max_units": max(_LEAST_BOUND_ON_PEOPLE, 2 * people),
        "expected_units": _SAMPLING_PROBABILITY * people,
        "answer_form": answer_form,
        "max_new_tokens": _REASONED_TOKENS if answer_form == "reasoned" else _SHORT_TOKENS,
    }


def cache_folder(named: str | None, environment: Mapping[str, str]) -> str:
    """Where models lie that are named by a name."""
    if named is not None:
        return str(Path(named).expanduser().absolute())
    return environment.get("LADA_CACHE_DIR") or _CACHE


def existing_file(text: str) -> str:
    """The whole path of a file that is there. Raises: ParameterError: it is not."""
    path = Path(text).expanduser()
    if not path.is_file():
        raise ParameterError(f"{text}: no such file; expected one that is there already")
    return str(path.absolute())


def optional_file(text: str) -> str | None:
    """Likewise; None for no file at all."""
    return existing_file(text) if text else None


def model_in(cache_dir: str) -> Callable[[str], str]:
    """Reads a model's folder, or its name in the cache, to what the settings should say."""

    def read(text: str) -> str:
        path = Path(text).expanduser()
        if path.is_dir():
            return str(path.absolute())
        if path.name == text and (Path(cache_dir).expanduser() / text).is_dir():
            return text
        raise ParameterError(
            f"{text}: no such folder, here or in {cache_dir}; expected a model in the transformers "
            "format, with config.json and safetensors"
        )

    return read


def epsilon_value(text: str) -> float:
    """An epsilon. Raises: ParameterError: not a number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    # Not `value <= 0`: what is not a number must be refused.
    if not 0 < value < float("inf"):
        raise ParameterError(f"expected a number above 0, got {text!r}")
    return value
