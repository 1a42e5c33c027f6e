"""How well a model answers, and how probable it finds a path; here or behind a server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from lada_secure.data.records import PoolSample, Record
from lada_secure.errors import ParameterError
from lada_secure.models.calling import Joined, common_length
from lada_secure.models.examples import RationaleExample, encode_row
from lada_secure.models.forward import OptionTokens, batches_by_length
from lada_secure.models.loading import LanguageModel
from lada_secure.models.rationale_scoring import shared_scorer
from lada_secure.models.text_model import TextModel
from lada_secure.privacy.release.private_records import for_each_unit

# What a model may write to answer an open question, path and answer together.
ANSWER_TOKENS: Final = 32
# Lengths of prompts and options without a meaning.
_MADE_UP: Final = (3, 7)


@dataclass(frozen=True, slots=True, kw_only=True)
class Paths:
    """Joint log-probabilities of paths.

    `total`: (n,) float64, natural logarithm of the whole path's probability, end token included,
    <= 0. `tokens`: (n,) int64, how many tokens that is, >= 1.
    """

    total: NDArray[np.float64]
    tokens: NDArray[np.int64]

    @property
    def mean(self) -> NDArray[np.float64]:
        """Log-probability per token, so that paths of different lengths compare."""
        return self.total / self.tokens

    @property
    def losses(self) -> NDArray[np.float64]:
        """Nats per token, >= 0 whatever rounding does."""
        found: NDArray[np.float64] = np.maximum(-self.mean, 0.0)
        return found


def accuracy(
    lm: TextModel,
    records: Sequence[Record | PoolSample],
    *,
    batch_size: int,
    max_new_tokens: int = ANSWER_TOKENS,
) -> float:
    """Share of questions answered rightly, in [0, 1]; see `correct`."""
    right = correct(lm, records, batch_size=batch_size, max_new_tokens=max_new_tokens)
    return float(np.mean(right))


def correct(
    lm: TextModel,
    records: Sequence[Record | PoolSample],
    *,
    batch_size: int,
    max_new_tokens: int = ANSWER_TOKENS,
) -> NDArray[np.bool_]:
    """Which questions are answered rightly: (n,) bool.

    Multiple choice: the option that the model prefers, see `choose`. Where it must write before its
    answer is known (open questions, and all in a form that reasons first): greedy generation, then
    the answer is read from the path.
    A record that the model cannot be asked about, whatever it holds, counts as answered wrongly.

    Args: batch_size: >= 1. max_new_tokens: of what is written, path and answer together.
    Raises: ParameterError: no records, or a batch size below 1.
    """
    if not records:
        raise ParameterError("accuracy needs at least one record")
    if batch_size < 1:
        raise ParameterError(f"batch_size: expected 1 or more, got {batch_size}")

    def judged(part: Sequence[Record | PoolSample]) -> list[bool]:
        right = [False] * len(part)
        chosen = [at for at, one in enumerate(part) if not lm.form.writes_first(one.choices)]
        picks = choose(lm, [part[at] for at in chosen], batch_size=batch_size)
        for at, pick in zip(chosen, picks, strict=True):
            right[at] = part[at].choices[pick] == part[at].answer
        written = [at for at, one in enumerate(part) if lm.form.writes_first(one.choices)]
        if written:
            prompts = [lm.form.prompt(part[at].question, part[at].choices) for at in written]
            paths = greedy_rationales(
                lm, prompts, batch_size=batch_size, max_new_tokens=max_new_tokens
            )
            for at, path in zip(written, paths, strict=True):
                right[at] = lm.form.right(path, part[at].choices, part[at].answer)
        return right

    found = for_each_unit(records, judged, otherwise=False, what="held-out accuracy")
    return np.array(found, dtype=np.bool_)


def choose(
    lm: TextModel, records: Sequence[Record | PoolSample], *, batch_size: int
) -> NDArray[np.int64]:
    """The option that the model prefers for each multiple-choice question: its place, (n,).

    The option whose text, or letter where options are listed, has the highest log-probability per
    token; without the division, short options would win by being short. The prompt is read once and
    its keys and values serve all options.

    Args: batch_size: questions at a time; four times as many options.
    Raises: ParameterError: a question without options, or one that must be written about first.
    """
    if any(lm.form.writes_first(record.choices) for record in records if record.choices):
        raise ParameterError(f"the form {lm.form.name} has its answer behind what the model writes")
    scores = _all_option_scores(lm, records, batch_size=batch_size)
    return np.array([int(np.argmax(values)) for values in scores], dtype=np.int64)


def option_probabilities(
    lm: TextModel,
    records: Sequence[Record | PoolSample],
    *,
    batch_size: int,
    begun: Sequence[str] = (),
) -> list[NDArray[np.float64]]:
    """How probable the model finds each option of a multiple-choice question, among its options.

    A softmax over the log-probabilities per token that `choose` compares.

    Args: begun: what the model has written before its answer, per question; none where the answer
        comes first.
    Returns: one array per question, entries in [0, 1] that sum to 1.
    Raises: ParameterError: a question without options.
    """
    scores = _all_option_scores(lm, records, batch_size=batch_size, begun=begun)
    weights = [np.exp(values - values.max()) for values in scores]
    return [weight / weight.sum() for weight in weights]


def _all_option_scores(
    lm: TextModel,
    records: Sequence[Record | PoolSample],
    *,
    batch_size: int,
    begun: Sequence[str] = (),
) -> list[NDArray[np.float64]]:
    if not all(record.choices for record in records):
        raise ParameterError("choosing an option needs options, got an open question")
    asked = [
        _asked(lm, record, text)
        for record, text in zip(records, begun or [""] * len(records), strict=True)
    ]
    return lm.option_log_probabilities(asked, batch_size=batch_size)


def _asked(lm: TextModel, record: Record | PoolSample, begun: str) -> OptionTokens:
    prompt = lm.form.prompt(record.question, record.choices)
    joined = [_behind(lm, prompt, begun, text) for text in lm.form.options(record.choices)]
    shortest = min(joined, key=lambda one: len(one.context))
    shared = len(shortest.context)
    # Options of more than half of what the model takes lose their ends, and a prompt its start.
    most = lm.max_tokens // 2
    options: list[tuple[int, ...]] = []
    firsts: list[int] = []
    for one in joined:
        target = (one.target or (lm.end_token,))[: max(1, most - (len(one.context) - shared))]
        options.append((*one.context[shared:], *target)[-most:])
        firsts.append(len(options[-1]) - len(target))
    room = lm.max_tokens - max(len(option) for option in options)
    return OptionTokens(
        prompt=shortest.fitted(room) or (lm.end_token,),
        options=tuple(options),
        firsts=tuple(firsts),
    )


def _behind(lm: TextModel, prompt: str, begun: str, option: str) -> Joined:
    """An option behind what is written of the path already; that is read and not scored."""
    whole = lm.join(prompt, begun + option)
    if not begun:
        return whole
    before, tokens = lm.join(prompt, begun), whole.context + whole.target
    shared = common_length(before.context + before.target, tokens)
    return Joined(context=tokens[:shared], target=tokens[shared:], kept=min(whole.kept, shared))


def cache_deviation(lm: TextModel) -> float:
    """By how much a shared cache and padding change what options score, on made-up tokens.

    Returns: the largest difference to a pass without any, nats a token; 0 where none is used.
    """
    if not isinstance(lm, LanguageModel) or not lm.pads:
        return 0.0
    rows = lm.model.get_input_embeddings().weight.shape[0]
    tokens = [(5 + 11 * at) % rows for at in range(2 * max(_MADE_UP))]
    asked = [
        OptionTokens(
            prompt=tuple(tokens[:length]),
            options=tuple(tuple(tokens[length : length + more]) for more in _MADE_UP),
            firsts=(0,) * len(_MADE_UP),
        )
        for length in _MADE_UP
    ]
    cached = lm.option_log_probabilities(asked, batch_size=len(asked))
    whole = lm.whole_option_log_probabilities(asked, batch_size=1)
    return max(float(np.abs(one - other).max()) for one, other in zip(cached, whole, strict=True))


def rationale_log_probabilities(
    lm: TextModel, prompts: Sequence[str], paths: Sequence[str], *, batch_size: int
) -> Paths:
    """Joint log-probability of each path, end token included, after its prompt.

    What is longer than the model takes is cut as in training, see `encode_row`.

    Args: prompts, paths: the same number. batch_size: >= 1.
    Raises: ParameterError: different numbers.
    """
    if len(prompts) != len(paths):
        raise ParameterError(f"got {len(prompts)} prompts and {len(paths)} paths; need as many")
    rows = [encode_row(lm, prompt, path) for prompt, path in zip(prompts, paths, strict=True)]
    tokens = np.array([row.target_length for row in rows], dtype=np.int64)
    scorer = shared_scorer(lm.model, device=lm.device) if isinstance(lm, LanguageModel) else None
    if scorer is None:
        total = lm.target_log_probabilities(
            [row.tokens for row in rows], tokens.tolist(), batch_size=batch_size
        )
    else:
        total = np.zeros(len(rows), dtype=np.float64)
        with torch.no_grad():
            for batch in batches_by_length([len(row.tokens) for row in rows], batch_size):
                total[batch] = scorer([rows[at] for at in batch]).cpu().numpy()
    return Paths(total=total, tokens=tokens)


def rationale_losses(
    lm: TextModel, examples: Sequence[RationaleExample], *, batch_size: int
) -> NDArray[np.float64]:
    """Losses of the examples' paths under a model as it is now, (n,), see `Paths.losses`."""
    prompts = [example.prompt for example in examples]
    paths = [example.path for example in examples]
    return rationale_log_probabilities(lm, prompts, paths, batch_size=batch_size).losses


def greedy_rationales(
    lm: TextModel, prompts: Sequence[str], *, batch_size: int, max_new_tokens: int
) -> list[str]:
    """The path that the model writes after each prompt, most probable token by token."""
    return generate_texts(
        lm, prompts, batch_size=batch_size, max_new_tokens=max_new_tokens, temperature=0.0, seed=0
    )


def generate_texts(
    lm: TextModel,
    prompts: Sequence[str],
    *,
    batch_size: int,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    top_p: float = 1.0,
    begun: Sequence[str] | None = None,
) -> list[str]:
    """Let the model continue each prompt up to its end token.

    A prompt that leaves no room for `max_new_tokens` loses its start.

    Args: temperature: 0 is greedy. top_p: tokens are drawn from the fewest that have this share of
        the probability (Holtzman et al. 2020), in (0, 1]. seed: of the sampling; public data only,
        it is not for privacy. begun: how each path begins already; what is returned goes on from
        there.
    Raises: ParameterError: negative temperature, a share outside (0, 1], sizes below 1, or more new
        tokens than the model takes.
    """
    if temperature < 0 or max_new_tokens < 1 or not 0.0 < top_p <= 1.0:
        raise ParameterError(
            f"generation needs temperature >= 0, max_new_tokens >= 1 and top_p in (0, 1], got "
            f"{temperature}, {max_new_tokens} and {top_p}"
        )
    if max_new_tokens >= lm.room:
        raise ParameterError(
            f"max_new_tokens is {max_new_tokens}, {lm.name} takes {lm.room} with the prompt"
        )
    room = lm.max_tokens - max_new_tokens
    starts = begun or [""] * len(prompts)
    encoded = [
        lm.encode_prompt(prompt, begun=start, room=room)
        for prompt, start in zip(prompts, starts, strict=True)
    ]
    texts = lm.continuations(
        encoded,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
    )
    return [
        text if start else lm.style.path(prompt, text)
        for prompt, start, text in zip(prompts, starts, texts, strict=True)
    ]
