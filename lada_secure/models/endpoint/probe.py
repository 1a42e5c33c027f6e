"""What a server must be able to do, tried on known texts before anything depends on it.

Every ability that is missing is named, and which servers have it. The answers to the known texts
are kept as the model's fingerprint: what is served under the same name later must give them again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Final, TypeAlias

from lada_secure.canonical import Json, canonical_json, sha256_hex
from lada_secure.errors import LadaError, ParameterError
from lada_secure.models.endpoint.completions import (
    Completions,
    score_question,
    write_question,
)
from lada_secure.models.endpoint.dialects import Dialect, Lacking, same_text
from lada_secure.models.endpoint.http import HttpClient, NotThere
from lada_secure.models.endpoint.replies import MAX_MODELS_BYTES, Choice, ModelList, parse_reply
from lada_secure.models.forward import Tokens

LOG = logging.getLogger(__name__)

# Letters, digits, spaces, line breaks and other scripts: where tokenizers differ.
KNOWN_TEXTS: Final = (
    "The capital of France is Paris, and the capital of Italy is Rome.",
    "Question: what is 17 + 25?\nAnswer: 42.",
    "In 1998, 3,141 patients took part;  two  spaces and\ttabs are kept.",
    "def add(a, b):\n    return a + b  # a comment\n",
    "Größe, naïve, Ελλάδα, 北京, 🙂 and 1.5e-3 mg/dL",
)
# Two answers to one request.
_SAME: Final = 1e-3
# Reading a token and having written it, or reading it in a longer text: servers that compute in
# bfloat16 differ here by some hundredths, numbers of another token by whole nats.
_ALIKE: Final = 0.1
_WRITTEN: Final = 8
Scores: TypeAlias = Sequence[float | None]
_TRIED_S: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """What a served model answers to the known texts.

    scores: joint log-probability of each, nats. lengths: their tokens.
    """

    model: str
    dialect: str
    tokenizer_sha256: str
    scores: tuple[float, ...]
    lengths: tuple[int, ...]

    @property
    def identity(self) -> str:
        """Names the served model in caches."""
        return sha256_hex(self.to_bytes())

    def to_bytes(self) -> bytes:
        """The form that is kept on disk."""
        value: Json = {
            "model": self.model,
            "dialect": self.dialect,
            "tokenizer_sha256": self.tokenizer_sha256,
            "scores": list(self.scores),
            "lengths": list(self.lengths),
        }
        return canonical_json(value)

    def check_same(self, now: Fingerprint) -> None:
        """Raises: ParameterError: another model is served under the name than before."""
        wrong = ""
        if now.tokenizer_sha256 != self.tokenizer_sha256:
            wrong = "it has another tokenizer, or is called in another style"
        elif (now.model, now.lengths) != (self.model, self.lengths):
            wrong = f"it was {self.model!r} with other tokens"
        else:
            apart = max(
                abs(old - new) / length
                for old, new, length in zip(self.scores, now.scores, self.lengths, strict=True)
            )
            if apart > _ALIKE:
                wrong = f"its log-probabilities of known texts differ by {apart:.2g} nats a token"
        if wrong:
            raise ParameterError(
                f"the server's {now.model!r} is not the model that this study began with: {wrong}; "
                "serve that one again, or begin a study of its own"
            )


def parse_fingerprint(raw: bytes) -> Fingerprint:
    """Read what `to_bytes` wrote. Raises: ParameterError: damaged."""
    try:
        value = json.loads(raw)
        return Fingerprint(
            model=str(value["model"]),
            dialect=str(value["dialect"]),
            tokenizer_sha256=str(value["tokenizer_sha256"]),
            scores=tuple(float(one) for one in value["scores"]),
            lengths=tuple(int(one) for one in value["lengths"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ParameterError(
            "the fingerprint of the served LLM in the state folder is damaged; restore it from its "
            "backup"
        ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """How a server is tried.

    model: as served. encode: a text's token ids as the method makes them of a prompt. dialects: in
    the order in which they are tried. end_tokens: a text ends with any of them. patience_s: how
    long each request is tried again. spoken: the dialect that the server spoke before; None at its
    first probe.
    """

    http: HttpClient
    model: str
    encode: Callable[[str], list[int]]
    dialects: Sequence[Dialect]
    end_tokens: tuple[int, ...]
    patience_s: float
    spoken: str | None = None

    def run(self) -> tuple[Dialect, Fingerprint, int | None]:
        """Try all abilities.

        Returns: the dialect that the server speaks, the model's fingerprint, and how many tokens
            the server takes, None where it does not say.
        Raises: TransportError: no server. ParameterError: another model, or an ability is missing.
        """
        longest = self._check_served()
        server = self._first_that_works()
        rows = [self.encode(text) for text in KNOWN_TEXTS]
        first = [self._scores(server, row) for row in rows]
        self._check_numbers(first)
        self._check_repeated(server, rows, first)
        self._check_tokenizer(server)
        self._check_written(server, rows)
        LOG.info(
            "%s serves %s; asked by %s", self.http.endpoint.root, self.model, server.dialect.name
        )
        fingerprint = Fingerprint(
            model=self.model,
            dialect=server.dialect.name,
            tokenizer_sha256=sha256_hex(canonical_json([list(row) for row in rows])),
            scores=tuple(sum(one or 0.0 for one in values) for values in first),
            lengths=tuple(len(row) for row in rows),
        )
        return server.dialect, fingerprint, longest

    def _check_served(self) -> int | None:
        lists: list[ModelList] = []
        try:
            self.http.get(
                "/models",
                max_bytes=MAX_MODELS_BYTES,
                patience_s=self.patience_s,
                read=lambda raw: lists.append(parse_reply(raw, ModelList)),
            )
        except NotThere as error:
            raise ParameterError(
                f"{error}; is llm.endpoint the URL of an OpenAI-compatible API, as https://host/v1?"
            ) from error
        served = {card.id: card for card in lists[-1].data}
        if self.model not in served:
            raise ParameterError(
                f"{self.http.endpoint.root} serves {', '.join(sorted(served))[:300] or 'nothing'}, "
                f"and llm.model is {self.model!r}; name a served one, or start the server with it"
            )
        return served[self.model].max_model_len

    def _first_that_works(self) -> Completions:
        """The server in the first dialect in which it gives log-probabilities of a prompt."""
        reasons = []
        row = self.encode(KNOWN_TEXTS[0])
        for dialect in sorted(self.dialects, key=lambda one: one.name != self.spoken):
            server = Completions(
                http=self.http,
                dialect=dialect,
                model=self.model,
                identity="",
                end_tokens=self.end_tokens,
                # What it does not speak it may refuse as it would an error of its own.
                patience_s=self.patience_s
                if dialect.name == self.spoken
                else min(self.patience_s, _TRIED_S),
            )
            try:
                self._scores(server, row)
            except Lacking as error:
                reasons.append(f"by {dialect.name} {error.said}")
            except LadaError as error:
                reasons.append(f"by {dialect.name} {str(error)[:300]}")
            else:
                return replace(server, patience_s=self.patience_s)
        raise Lacking("prompt log-probabilities", "; ".join(reasons))

    def _scores(self, server: Completions, row: Tokens, *, prompt: Json = None) -> Scores:
        """Log-probability of every token of a row; None for the first ones and start tokens.

        Raises: Lacking: another token has none.
        """
        dialect = server.dialect
        found = dialect.log_probabilities(server.ask(score_question(row), prompt=prompt), row)
        start = dialect.tokenizer.bos_token_id
        lacking = [
            token
            for token, value in zip(row[2:], found[2:], strict=True)
            if value is None and token != start
        ]
        if lacking:
            raise Lacking(
                "prompt log-probabilities", f"{len(lacking)} tokens of a prompt have none"
            )
        return found

    def _check_numbers(self, scores: Sequence[Scores]) -> None:
        if not any(value for values in scores for value in values):
            raise Lacking("prompt log-probabilities", "all that it gives are zeros")

    def _check_repeated(
        self, server: Completions, rows: Sequence[Tokens], first: Sequence[Scores]
    ) -> None:
        """The same request again, and a text as the beginning of a longer one."""
        again = [self._scores(server, row) for row in rows]
        apart = max(_apart(one, other) for one, other in zip(first, again, strict=True))
        if apart > _SAME:
            raise Lacking(
                "prompt log-probabilities that agree",
                f"one prompt asked twice differs by {apart:.2g} nats, at most {_SAME:g}; switch "
                "off whatever makes it answer at random",
            )
        for row, whole in zip(rows, first, strict=True):
            start = row[: 2 * len(row) // 3]
            # A server of texts must make these very tokens of the part.
            if list(server.dialect.settled(start, 1)[0]) == list(start):
                alone = self._scores(server, start)
                self._check_alike(
                    _apart(alone, whole[: len(start)]), "a text and the beginning of a longer one"
                )

    def _check_tokenizer(self, server: Completions) -> None:
        """The server's tokenizer makes the same ids of the known texts.

        Where prompts go as texts, every answer says so by itself.
        """
        tokenizer = server.dialect.tokenizer
        for text in KNOWN_TEXTS:
            ids = [int(one) for one in tokenizer(text, add_special_tokens=False)["input_ids"]]
            if isinstance(server.dialect.prompt(ids), str):
                return
            try:
                self._scores(server, ids, prompt=text)
            except Lacking as error:
                raise ParameterError(
                    f"the server's tokenizer is not the one in llm.tokenizer: of {text[:40]!r} "
                    f"{error.said}; name the folder of the served model's own tokenizer"
                ) from error

    def _check_written(self, server: Completions, rows: Sequence[Tokens]) -> None:
        """What it says of tokens that it reads is what it said when it wrote them."""
        # After a whole text there may be nothing to write.
        for row in (*(row[: len(row) // 2] for row in rows), *rows):
            question = write_question(row, _WRITTEN)
            reply, again = server.ask(question), server.ask(question)
            if reply.choice.text != again.choice.text:
                raise Lacking(
                    "greedy answers",
                    "at temperature 0 one prompt has two answers",
                    "vLLM and llama-cpp-python's server give them",
                )
            said = reply.choice.logprobs
            written = None if said is None else self._ids_written(server, reply.choice, said.tokens)
            if said is None or not written:
                continue
            values = self._scores(server, [*row, *written])[len(row) :]
            when_written = said.token_logprobs[: len(written)]
            self._check_alike(
                _apart(values, when_written), "a token when it is read and when it is written"
            )
            return
        raise Lacking(
            "prompt log-probabilities that can be compared with its own",
            "after none of the known texts does it write tokens, with log-probabilities, that the "
            "tokenizer here makes of their text",
        )

    def _ids_written(
        self, server: Completions, choice: Choice, texts: Sequence[str]
    ) -> Tokens | None:
        """What was written, up to an end token; None where its tokens are not known for sure."""
        tokenizer = server.dialect.tokenizer
        if choice.token_ids is not None:
            known = [int(one) for one in choice.token_ids]
        else:
            known = [int(one) for one in tokenizer(choice.text, add_special_tokens=False).input_ids]
            pieces = [str(tokenizer.decode([one])) for one in known]
            if not all(same_text(*pair) for pair in zip(pieces, texts, strict=False)):
                return None
        ends = [at for at, one in enumerate(known) if one in self.end_tokens]
        return known[: min(ends[0] if ends else len(known), len(texts))]

    def _check_alike(self, apart: float, what: str) -> None:
        if apart > _ALIKE:
            raise Lacking(
                "prompt log-probabilities of the right tokens",
                f"{what} differ by {apart:.2g} nats, at most {_ALIKE:g}. llama-cpp-python's server "
                "gives those of the next place unless a prompt begins with the model's start "
                "token: there, call the model in a style that begins with it",
                "vLLM gives them for every prompt",
            )
        if apart > _SAME:
            LOG.warning(
                "%s: %s differ by %.2g nats; it computes in short numbers, and picks between "
                "nearly equal options may come out otherwise than in process",
                self.http.endpoint.root,
                what,
                apart,
            )


def check_length(server: Completions, encode: Callable[[str], list[int]]) -> None:
    """Have a prompt read that is as long as the longest of a study.

    Args: encode: token ids of a long text, cut to that length.
    Raises: ParameterError: the server does not take it.
    """
    row = encode(" ".join(KNOWN_TEXTS * 500))
    try:
        replace(server, cache=None).target_scores([row], [1])
    except LadaError as error:
        raise ParameterError(
            f"the server does not take {len(row)} tokens, which this study needs: {error}; start "
            "it with a longer context, or shorten pool or paths.max_new_tokens"
        ) from error


def _apart(one: Scores, other: Scores) -> float:
    """Largest difference where both have a number; infinite where none has, or lengths differ."""
    if len(one) != len(other):
        return inf
    both = zip(one, other, strict=True)
    return max((abs(a - b) for a, b in both if a is not None and b is not None), default=inf)
