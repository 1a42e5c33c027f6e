"""Three ways in which servers take prompts and give log-probabilities of prompt tokens.

| name | prompts | log-probabilities | spoken by |
|---|---|---|---|
| `prompt_logprobs` | token ids | `prompt_logprobs`, by token id | vLLM |
| `echo_ids` | token ids | `echo` and `logprobs`, by the tokens' texts | OpenAI's protocol itself |
| `echo_text` | text | the same | llama-cpp-python with `logits_all` |

With ids nothing is tokenized twice. With text the server tokenizes again what the tokenizer here
has decoded, control tokens included, so the row is first made one that survives that; then the
echoed tokens are compared one by one with the ones expected.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from transformers import PreTrainedTokenizerBase

from lada_secure.canonical import Json
from lada_secure.errors import ParameterError
from lada_secure.models.endpoint.replies import Completion, EchoedTokens
from lada_secure.models.forward import Tokens

_HAVE_LOG_PROBABILITIES: Final = (
    "vLLM has it (prompt_logprobs), and so has llama-cpp-python's server with logits_all = true "
    "(echo with logprobs); llama.cpp's own llama-server and Ollama have not"
)
_REPLACED: Final = "�"


class Lacking(ParameterError):
    """A server lacks an ability; says which, and which servers have it."""

    def __init__(self, ability: str, said: str, have: str = _HAVE_LOG_PROBABILITIES) -> None:
        super().__init__(f"the server cannot give {ability}: {said}; {have}")
        self.said = said


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect(ABC):
    """How one kind of server is asked, with the tokenizer of this side."""

    tokenizer: PreTrainedTokenizerBase

    @property
    @abstractmethod
    def name(self) -> str:
        """Stands in caches and logs."""

    @property
    @abstractmethod
    def scoring(self) -> Mapping[str, Json]:
        """What a request for log-probabilities says besides its prompt."""

    @abstractmethod
    def prompt(self, ids: Tokens) -> Json:
        """The prompt of a request."""

    @abstractmethod
    def log_probabilities(self, reply: Completion, ids: Tokens) -> list[float | None]:
        """Of every token of the prompt; None where the server gives none, as for the first.

        Raises: Lacking: it gives none at all, or those of other tokens.
        """

    def settled(self, ids: Tokens, target: int) -> tuple[Tokens, int]:
        """The row as the server will read it, and how many of its last tokens are the target."""
        return ids, target

    def tokens_written(self, reply: Completion) -> Tokens | None:
        """Ids of what was written; None where the server gives its text alone."""
        return reply.choice.token_ids


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptLogprobs(Dialect):
    """Ids in, log-probabilities by id out."""

    @property
    def name(self) -> str:
        """See `Dialect`."""
        return "prompt_logprobs"

    @property
    def scoring(self) -> Mapping[str, Json]:
        """See `Dialect`."""
        return {"prompt_logprobs": 0, "return_token_ids": True}

    def prompt(self, ids: Tokens) -> Json:
        """See `Dialect`."""
        return list(ids)

    def log_probabilities(self, reply: Completion, ids: Tokens) -> list[float | None]:
        """See `Dialect`."""
        given = reply.choice.prompt_logprobs
        if given is None:
            raise Lacking("prompt log-probabilities", "its answer has no prompt_logprobs")
        echoed = reply.choice.prompt_token_ids
        found: list[float | None] = []
        for token, place in zip(ids, given, strict=False):
            one = None if place is None else place.get(str(token))
            if place is not None and one is None:
                raise Lacking("back the token ids of a prompt", "it read other tokens than sent")
            found.append(None if one is None else one.logprob)
        if len(given) != len(ids):
            raise Lacking(
                "back the token ids of a prompt",
                f"it read {len(given)} tokens where {len(ids)} were sent",
            )
        if echoed is not None and list(echoed) != list(ids):
            raise Lacking("back the token ids of a prompt", "it read other tokens than sent")
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class EchoIds(Dialect):
    """Ids in, echoed texts of tokens out."""

    @property
    def name(self) -> str:
        """See `Dialect`."""
        return "echo_ids"

    @property
    def scoring(self) -> Mapping[str, Json]:
        """See `Dialect`."""
        return {"echo": True, "logprobs": 1}

    def prompt(self, ids: Tokens) -> Json:
        """See `Dialect`."""
        return list(ids)

    def log_probabilities(self, reply: Completion, ids: Tokens) -> list[float | None]:
        """See `Dialect`."""
        usage = reply.usage
        if usage is not None and usage.prompt_tokens not in (None, len(ids)):
            raise Lacking(
                "back the tokens of a prompt",
                f"it counts {usage.prompt_tokens} tokens where this side has {len(ids)}",
            )
        if reply.choice.logprobs is None:
            raise Lacking("prompt log-probabilities", "its answer has no logprobs")
        return _aligned(self.tokenizer, reply.choice.logprobs, ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class EchoText(EchoIds):
    """Text in, echoed texts of tokens out. adds_bos: the server puts the start token in front."""

    adds_bos: bool = False

    @property
    def name(self) -> str:
        """See `Dialect`."""
        return "echo_text"

    def prompt(self, ids: Tokens) -> Json:
        """See `Dialect`."""
        own = list(ids)
        if self.adds_bos and own[:1] == [self.tokenizer.bos_token_id]:
            own = own[1:]
        return str(
            self.tokenizer.decode(
                own, skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
        )

    def settled(self, ids: Tokens, target: int) -> tuple[Tokens, int]:
        """See `Dialect`; a token over the seam belongs to the target."""
        read = self.tokenizer(str(self.prompt(ids)), add_special_tokens=False)["input_ids"]
        again = [int(one) for one in read]
        if self.adds_bos:
            again = [int(self.tokenizer.bos_token_id), *again]
        if again == list(ids) or len(again) < 2:
            return ids, target
        before = ids[: len(ids) - target]
        same = 0
        while same < min(len(before), len(again) - 1) and before[same] == again[same]:
            same += 1
        return again, len(again) - max(1, same)


def _aligned(
    tokenizer: PreTrainedTokenizerBase, echoed: EchoedTokens, ids: Tokens
) -> list[float | None]:
    """Log-probabilities by the places of `ids`, whose texts the echoed tokens must have.

    Some servers leave start tokens out of their list, and all may add one token that they wrote.

    Raises: Lacking: other tokens, or none.
    """
    if len(echoed.tokens) != len(echoed.token_logprobs):
        raise Lacking("prompt log-probabilities", "its lists of tokens and numbers differ")
    pieces = [str(tokenizer.decode([one], skip_special_tokens=False)) for one in ids]
    special = set(tokenizer.all_special_ids)
    without_bos = [at for at, one in enumerate(ids) if one != tokenizer.bos_token_id]
    for places in (list(range(len(ids))), without_bos):
        extra = len(echoed.tokens) - len(places)
        if extra in (0, 1) and all(
            ids[at] in special or same_text(pieces[at], text)
            for at, text in zip(places, echoed.tokens, strict=False)
        ):
            found: list[float | None] = [None] * len(ids)
            for at, value in zip(places, echoed.token_logprobs, strict=False):
                found[at] = value
            return found
    raise Lacking(
        "back the tokens of a prompt",
        f"it lists {len(echoed.tokens)} tokens where this side has {len(ids)}, or other ones; is "
        "the folder named by llm.tokenizer the tokenizer of the served model?",
    )


def same_text(piece: str, text: str) -> bool:
    """Whether a token has this text; a part of a character has none that compares."""
    return _REPLACED in piece or _REPLACED in text or piece.strip() == text.strip()


def all_dialects(tokenizer: PreTrainedTokenizerBase) -> Sequence[Dialect]:
    """In the order in which they are tried: ids before text, numbers by id before texts."""
    found: list[Dialect] = [
        PromptLogprobs(tokenizer=tokenizer),
        EchoIds(tokenizer=tokenizer),
        EchoText(tokenizer=tokenizer),
    ]
    if tokenizer.bos_token_id is not None:
        found.append(EchoText(tokenizer=tokenizer, adds_bos=True))
    return found
