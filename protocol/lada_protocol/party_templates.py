"""Settings files as `lada init` writes them: templates with comments, filled in from answers.

A template is a TOML file with `${answer}` where an answer goes. A line `key = ${answer|example}`
may be left open: without the answer it becomes the comment `# key = example`. Comments of the form
`# key = value` show what holds by default; a test compares all keys with the models that read them.
Each role's package brings its templates by the entry point group `lada.templates`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from lada_protocol.kinds import Role
from lada_protocol.settings import Settings, parse_settings
from lada_secure.errors import LocalProtocolError

GROUP: Final = "lada.templates"
# What the roster's pin says until `lada init join` has put the agreed one there.
NO_ROSTER: Final = "0" * 64
PIN: Final = re.compile(r'(?m)^(roster_sha256[ \t]*=[ \t]*)"[0-9a-f]{64}"')
Answer: TypeAlias = str | int | float | Sequence[str] | None
_PLACE: Final = re.compile(r"\$\{([a-z_0-9]+)(?:\|([^}\n]*))?\}")
_LINE: Final = re.compile(r"(?m)^([a-z_0-9]+ = )\$\{([a-z_0-9]+)\|([^}\n]*)\}$")


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingsTemplate:
    """One settings file of a role. model: what reads it. text: see the module."""

    file: str
    model: type[Settings]
    text: str

    def filled(self, answers: Mapping[str, Answer]) -> bytes:
        """The file with every answer in it, read back once by what will read it.

        Raises: ParameterError: an answer that the settings do not allow, naming its key.
          LocalProtocolError: the template asks for what nobody answers.
        """

        def left_open(match: re.Match[str]) -> str:
            key, name, example = match.groups()
            open_line = f"# {key}{example}"
            return open_line if self._answer(answers, name) is None else f"{key}${{{name}}}"

        def put_in(match: re.Match[str]) -> str:
            return toml_value(self._answer(answers, match[1]))

        raw = _PLACE.sub(put_in, _LINE.sub(left_open, self.text)).encode("utf-8")
        parse_settings(raw, self.model, where=f"the new {self.file}")
        return raw

    def _answer(self, answers: Mapping[str, Answer], name: str) -> Answer:
        if name not in answers:
            raise LocalProtocolError(f"the template of {self.file} asks for {name!r}")
        return answers[name]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleTemplates:
    """What one role's folder begins with.

    files: its own settings file first. pins: the file that pins the roster; None where none does.
    """

    role: Role
    files: tuple[SettingsTemplate, ...]
    pins: SettingsTemplate | None

    @property
    def settings(self) -> SettingsTemplate:
        """The file that the role's `run` takes."""
        return self.files[0]


def template_beside(module: str, file: str, model: type[Settings]) -> SettingsTemplate:
    """A template in the folder `templates` beside a module. Args: module: its `__file__`."""
    text = (Path(module).with_name("templates") / file).read_text(encoding="utf-8")
    return SettingsTemplate(file=file, model=model, text=text)


def toml_value(value: Answer) -> str:
    """A value as TOML spells it."""
    if isinstance(value, str):
        # JSON's spelling is TOML's but for DEL, which JSON lets through.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Sequence):
        return f"[{', '.join(toml_value(one) for one in value)}]"
    return repr(value)
