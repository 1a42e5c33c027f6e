"""What a completions server answers, as frozen types; the bytes are a stranger's.

Sizes are bounded before anything is parsed. Types are strict: a number in quotes is no number. What
servers add of their own is passed over.
"""

from __future__ import annotations

from typing import Annotated, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lada_secure.models.endpoint.http import Passing

# Of one answer. A prompt token comes back with its id, text and log-probability as JSON.
_ANSWER_BYTES: Final = 64 * 1024
_BYTES_A_TOKEN: Final = 1024
MAX_MODELS_BYTES: Final = 4 * 2**20

LogProb = Annotated[float, Field(le=0.0)]
TokenId = Annotated[int, Field(ge=0)]


class _Reply(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)


class ModelCard(_Reply):
    """One served model. max_model_len: tokens of prompt and answer; None where it is not told."""

    id: str
    max_model_len: Annotated[int, Field(ge=1)] | None = None


class ModelList(_Reply):
    """The answer of `/models`."""

    data: tuple[ModelCard, ...]


class PromptToken(_Reply):
    """What vLLM says of one token at one place of a prompt."""

    logprob: LogProb


class EchoedTokens(_Reply):
    """Tokens as texts, and their log-probabilities; None for the first of a prompt."""

    tokens: tuple[str, ...]
    token_logprobs: tuple[LogProb | None, ...]


class Choice(_Reply):
    """One completion, with what a server tells of its prompt."""

    text: str
    logprobs: EchoedTokens | None = None
    prompt_logprobs: tuple[dict[str, PromptToken] | None, ...] | None = None
    prompt_token_ids: tuple[TokenId, ...] | None = None
    token_ids: tuple[TokenId, ...] | None = None


class Usage(_Reply):
    """How much was read. prompt_tokens: of the prompt, None where it is not told."""

    prompt_tokens: int | None = None


class Completion(_Reply):
    """The answer of `/completions` to one prompt."""

    model: str
    choices: Annotated[tuple[Choice, ...], Field(min_length=1, max_length=1)]
    usage: Usage | None = None

    @property
    def choice(self) -> Choice:
        """The one completion."""
        return self.choices[0]


def answer_bytes(tokens: int) -> int:
    """The largest answer about so many tokens, prompt and completion together."""
    return _ANSWER_BYTES + _BYTES_A_TOKEN * tokens


R = TypeVar("R", bound=_Reply)


def parse_reply(raw: bytes, kind: type[R]) -> R:
    """Parse an answer's body; the caller has bounded its size.

    Raises: Passing: no JSON, cut short, or another form. A proxy in between may have made it, so
        it is worth another try.
    """
    if raw.lstrip()[:1] == b"<":
        raise Passing("the answer is HTML or XML, expected JSON; is there a login page or a proxy?")
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        fault = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in fault["loc"])[:100]
        raise Passing(
            f"the answer of {len(raw)} bytes is not a {kind.__name__.lower()}: "
            f"{where + ': ' if where else ''}{fault['msg'][:200]}"
        ) from error
