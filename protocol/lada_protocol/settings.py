"""Settings files: TOML parsed into frozen pydantic models, unknown keys refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Final, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from lada_secure.errors import ParameterError
from lada_secure.storage.toml_tables import parse_table, unknown_keys

# More would hide the first.
_SHOWN: Final = 3


class Settings(BaseModel):
    """Base of every settings model. moved: keys of earlier versions, and where each is now."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    moved: ClassVar[Mapping[str, str]] = {}

    def beside(self, folder: Path) -> Self:
        """The same settings with `~` expanded and relative paths taken from `folder`.

        Raises: ParameterError: a path starts with `~` and the name of nobody on this machine, or
            names a variable of the environment, which nothing here expands.
        """
        values = {name: getattr(self, name) for name in type(self).model_fields}
        paths: dict[str, object] = {
            name: folder / expanded(value, key=name)
            for name, value in values.items()
            if isinstance(value, Path)
        }
        tables = {
            name: value.beside(folder)
            for name, value in values.items()
            if isinstance(value, Settings)
        }
        return self.model_copy(update=paths | tables)


def expanded(path: Path, *, key: str) -> Path:
    """The path with `~` expanded. Raises: ParameterError: see `Settings.beside`; names the key."""
    # A folder whose name is `~` or `$HOME` would be a second state folder, and a second budget,
    # unnoticed.
    variables = [
        part for part in path.parts if part.startswith("$") or part[:1] == part[-1:] == "%"
    ]
    if variables:
        raise ParameterError(
            f"{key}: {path}: variables such as {variables[0]} are not expanded here; write the "
            "whole path"
        )
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ParameterError(
            f"{key}: {path}: there is no home folder for {path.parts[0]}; write the whole path"
        ) from error


S = TypeVar("S", bound=BaseModel)


def parse_settings(raw: bytes, model: type[S], *, where: str) -> S:
    """Parse one settings file.

    Args: where: the file's name, for messages.
    Raises: ParameterError naming file, key, what was expected and what was found.
    """
    value = parse_table(raw, where=where)
    try:
        # `true` is no number here, and "2" neither. Only from JSON do strict models take a path
        # from text and a tuple from a list.
        return model.model_validate_json(json.dumps(value), strict=True)
    except TypeError as error:
        # What TOML has and JSON has not.
        raise ParameterError(f"{where}: holds a date or a time, and no setting is one") from error
    except ValidationError as error:
        raise ParameterError(f"{where}: {describe(error, model)}") from error


def describe(error: ValidationError, model: type[BaseModel]) -> str:
    """The first few faults of a settings file in one sentence each."""
    sentences = []
    # A key under another name is often the one that seems to be missing, so it is told first.
    faults = sorted(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
    unknown: dict[tuple[str, ...], list[str]] = {}
    for fault in faults:
        key = ".".join(str(part) for part in fault["loc"]) or "(file)"
        moved = getattr(model, "moved", {}).get(key)
        if fault["type"] == "extra_forbidden" and moved is not None:
            sentences.append(f"the key {key!r} is now {moved}")
        elif fault["type"] == "extra_forbidden":
            table = tuple(str(part) for part in fault["loc"][:-1])
            unknown.setdefault(table, []).append(str(fault["loc"][-1]))
        elif fault["type"] == "missing":
            sentences.append(f"the key {key!r} is missing")
        elif fault["type"] == "value_error":
            # Our own sentence, which names what it is about where it is about several keys.
            said = str(fault["msg"]).removeprefix("Value error, ")
            sentences.append(f"{key}: {said}" if fault["loc"] else said)
        else:
            sentences.append(f"{key}: {fault['msg']}, got {str(fault['input'])[:80]!r}")
    told = [unknown_keys(keys, table, model) for table, keys in unknown.items()]
    return "; ".join([*told, *sentences][:_SHOWN])
