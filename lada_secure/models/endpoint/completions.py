"""Questions to a served LLM: scores of targets and continuations, asked once each.

Each question goes to the server alone, as many at a time as the endpoint's settings say: servers
batch what comes in together. What was answered before is not asked again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Final

from lada_secure.canonical import Json, canonical_json
from lada_secure.errors import ParameterError
from lada_secure.models.endpoint.cache import AnswerCache
from lada_secure.models.endpoint.dialects import Dialect, Lacking
from lada_secure.models.endpoint.http import HttpClient, NotThere
from lada_secure.models.endpoint.replies import Completion, answer_bytes, parse_reply
from lada_secure.models.forward import Tokens

LOG = logging.getLogger(__name__)

PATH: Final = "/completions"
# A server's defaults and a model's own generation settings would change what is written.
_AS_IT_IS: Final = {
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "repeat_penalty": 1.0,
    "n": 1,
    "stream": False,
    # A prompt that is a text is all of it.
    "add_special_tokens": False,
}
_PROGRESS_S: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Completions:
    """One served model, asked in one dialect.

    model: as it is named in requests. identity: what makes its answers; part of every cached
    question. end_tokens: a text ends with any of them. restore: brings the model back where the
    server has forgotten it, as adapters after its restart. watch: is told (done, all).
    """

    http: HttpClient
    dialect: Dialect
    model: str
    identity: str
    end_tokens: tuple[int, ...]
    cache: AnswerCache | None = None
    patience_s: float | None = None
    restore: Callable[[], object] | None = None
    watch: Callable[[int, int], None] = field(default=lambda _done, _all: None)

    def close(self) -> None:
        """Let go of connections and of the file of answers."""
        self.http.close()
        if self.cache is not None:
            self.cache.close()

    def target_scores(self, rows: Sequence[Tokens], targets: Sequence[int]) -> list[float]:
        """Joint log-probability of the last tokens of each row, nats.

        Raises: TransportError: the server does not answer. ParameterError: it refuses, or answers
            as another server than the one that was probed.
        """
        settled = [
            self.dialect.settled(row, target) for row, target in zip(rows, targets, strict=True)
        ]
        found = self._answers([_Score(tokens=tuple(row), target=n) for row, n in settled])
        return [_number(one) for one in found]

    def continuations(
        self,
        prompts: Sequence[Tokens],
        *,
        max_new_tokens: int,
        temperature: float,
        top_p: float,
        seed: int,
    ) -> list[tuple[str, Tokens | None]]:
        """What is written after each prompt, as text and, where the server gives them, as tokens.

        Raises: as `target_scores`.
        """
        found = self._answers(
            [
                _Write(
                    tokens=tuple(prompt),
                    max_new_tokens=max_new_tokens,
                    temperature=temperature,
                    top_p=top_p,
                    seed=seed,
                )
                for prompt in prompts
            ]
        )
        return [_written(one) for one in found]

    def ask(
        self, question: _Question, *, prompt: Json = None, stop: threading.Event | None = None
    ) -> Completion:
        """One answer of the server itself. prompt: in the place of the question's own tokens."""
        body: dict[str, Json] = {
            **_AS_IT_IS,
            **question.body(self.dialect, self.end_tokens),
            "model": self.model,
        }
        if prompt is not None:
            body["prompt"] = prompt
        try:
            return self._posted(body, question, stop)
        except NotThere:
            if self.restore is None:
                raise
            self.restore()
            return self._posted(body, question, stop)

    def _posted(self, body: Json, question: _Question, stop: threading.Event | None) -> Completion:
        replies: list[Completion] = []
        self.http.post(
            PATH,
            body,
            max_bytes=answer_bytes(len(question.tokens) + question.new_tokens),
            patience_s=self.http.endpoint.patience_s
            if self.patience_s is None
            else self.patience_s,
            read=lambda raw: replies.append(parse_reply(raw, Completion)),
            stop=stop,
        )
        reply = replies[-1]
        if reply.model != self.model:
            raise ParameterError(
                f"{self.http.endpoint.root}: asked {self.model!r}, and {reply.model[:100]!r} "
                "answered; name the served model as llm.model"
            )
        return reply

    def _answers(self, questions: Sequence[_Question]) -> list[Json]:
        """From the cache, else from the server; every different question once."""
        about = [[self.identity, self.dialect.name, *one.about()] for one in questions]
        keys = [canonical_json(one) for one in about]
        found: dict[bytes, Json] = {}
        open_: dict[bytes, int] = {}
        for at, key in enumerate(keys):
            if key not in found and key not in open_:
                kept = None if self.cache is None else self.cache.find(about[at])
                if kept is None:
                    open_[key] = at
                else:
                    found[key] = kept
        if open_:
            self._ask_all({key: (about[at], questions[at]) for key, at in open_.items()}, found)
        return [found[key] for key in keys]

    def _ask_all(self, jobs: dict[bytes, tuple[Json, _Question]], found: dict[bytes, Json]) -> None:
        stop, tally = threading.Event(), _Tally(len(jobs), self.watch)

        def work(key: bytes, about: Json, question: _Question) -> None:
            if stop.is_set():
                return
            reply = self.ask(question, stop=stop)
            answer = question.answer(reply, self.dialect)
            if self.cache is not None:
                self.cache.keep(about, answer)
            found[key] = answer
            tally.one_more()

        with ThreadPoolExecutor(self.http.endpoint.concurrency) as pool:
            futures = [pool.submit(work, key, *job) for key, job in jobs.items()]
            try:
                done, _ = wait(futures, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
            except BaseException:
                # The others end with their present try; what they get is kept.
                stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise


@dataclass(frozen=True, slots=True, kw_only=True)
class _Score:
    """How probable the last tokens are."""

    tokens: tuple[int, ...]
    target: int

    @property
    def new_tokens(self) -> int:
        # Asked for none, some servers write as much as they can.
        return 1

    def about(self) -> list[Json]:
        return ["score", list(self.tokens), self.target]

    def body(self, dialect: Dialect, _ends: Tokens) -> dict[str, Json]:
        return {
            **dialect.scoring,
            "prompt": dialect.prompt(self.tokens),
            "max_tokens": self.new_tokens,
            "temperature": 0.0,
        }

    def answer(self, reply: Completion, dialect: Dialect) -> Json:
        return sum(_target_values(reply, dialect, self.tokens, self.target))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Write:
    """What comes after the tokens."""

    tokens: tuple[int, ...]
    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int

    @property
    def new_tokens(self) -> int:
        return self.max_new_tokens

    def about(self) -> list[Json]:
        drawn: list[Json] = [self.temperature, self.top_p, self.seed]
        return ["write", list(self.tokens), self.max_new_tokens, *drawn]

    def body(self, dialect: Dialect, ends: Tokens) -> dict[str, Json]:
        return {
            "prompt": dialect.prompt(self.tokens),
            "max_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": self.seed,
            "stop_token_ids": list(ends),
            "skip_special_tokens": True,
            "return_token_ids": True,
            "logprobs": 1,
        }

    def answer(self, reply: Completion, dialect: Dialect) -> Json:
        tokens = dialect.tokens_written(reply)
        return [reply.choice.text, None if tokens is None else list(tokens)]


_Question = _Score | _Write


def score_question(tokens: Tokens) -> _Question:
    """The question of how probable a row's tokens are, for `Completions.ask`."""
    return _Score(tokens=tuple(tokens), target=1)


def write_question(tokens: Tokens, max_new_tokens: int) -> _Question:
    """The question of what greedily follows, for `Completions.ask`."""
    return _Write(
        tokens=tuple(tokens), max_new_tokens=max_new_tokens, temperature=0.0, top_p=1.0, seed=0
    )


def _target_values(reply: Completion, dialect: Dialect, tokens: Tokens, target: int) -> list[float]:
    """Log-probability of each of a row's last tokens.

    Raises: Lacking: one of them has none.
    """
    values = dialect.log_probabilities(reply, tokens)[-target:]
    known = [one for one in values if one is not None]
    if len(known) != len(values):
        raise Lacking("prompt log-probabilities", "some tokens of a prompt have none")
    return known


def _number(answer: Json) -> float:
    if not isinstance(answer, int | float):
        raise ParameterError("the cache of the LLM's answers holds something else; remove it")
    return float(answer)


def _written(answer: Json) -> tuple[str, Tokens | None]:
    text, tokens = answer if isinstance(answer, list) and len(answer) == 2 else (None, None)
    if not isinstance(text, str):
        raise ParameterError("the cache of the LLM's answers holds something else; remove it")
    return text, None if tokens is None else [int(one) for one in tokens]


class _Tally:
    """Counts what is done, and says so from time to time."""

    def __init__(self, total: int, watch: Callable[[int, int], None]) -> None:
        self._total = total
        self._watch = watch
        self._done = 0
        self._said_s = time.monotonic()
        self._lock = threading.Lock()

    def one_more(self) -> None:
        with self._lock:
            self._done += 1
            now_s = time.monotonic()
            if now_s - self._said_s >= _PROGRESS_S:
                self._said_s = now_s
                LOG.info("the LLM has answered %d of %d questions", self._done, self._total)
                self._watch(self._done, self._total)
