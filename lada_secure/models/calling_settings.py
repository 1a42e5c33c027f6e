"""What whoever loads a model says of how to call it; light to import, for settings files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias

from lada_secure.canonical import canonical_json, sha256_hex
from lada_secure.errors import ParameterError
from lada_secure.ranges import at_least, one_of

Style: TypeAlias = Literal["plain", "chat"]
STYLES: Final[tuple[Style, ...]] = ("plain", "chat")
MAX_TOKENS: Final = 4096
LEAST_TOKENS: Final = 16
_MAX_TEMPLATE_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Calling:
    """How a model is to be called.

    style: of the tokenizer's own, "plain" or "chat". template: a jinja2 file that takes the place
    of `style`. max_tokens: bounds the model's own context length, prompt and path together.
    """

    style: Style = "plain"
    template: Path | None = None
    max_tokens: int = MAX_TOKENS

    def __post_init__(self) -> None:
        one_of(STYLES, style=self.style)
        at_least(LEAST_TOKENS, max_tokens=self.max_tokens)
        if self.template is not None and self.style != "plain":
            raise ParameterError(
                'style and template: a template takes the place of style "chat"; name one of them'
            )

    def template_text(self) -> str | None:
        """What the template file holds; None without one.

        Raises: ParameterError: it cannot be read, is too long, or is not UTF-8.
        """
        if self.template is None:
            return None
        try:
            raw = self.template.read_bytes()
        except OSError as error:
            raise ParameterError(
                f"template {self.template}: cannot be read: {error.strerror}"
            ) from error
        if len(raw) > _MAX_TEMPLATE_BYTES:
            raise ParameterError(
                f"template {self.template}: {len(raw)} bytes, at most {_MAX_TEMPLATE_BYTES}"
            )
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ParameterError(f"template {self.template}: is not UTF-8") from error

    @property
    def sha256(self) -> str:
        """Hash of all that decides the calling but for the model itself, 64 hexadecimal digits."""
        return sha256_hex(canonical_json([self.style, self.template_text(), self.max_tokens]))
