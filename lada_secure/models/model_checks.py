"""What `lada check` looks at of a model, at a site as at the coordinator; roles make the list.

Weights are loaded and made-up tokens or public questions are computed on. No record comes near.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, TypeVar

import numpy as np
from pydantic import JsonValue
from transformers import PreTrainedTokenizerBase

from lada_secure.check.running import Found, Request, fine, unneeded, warn
from lada_secure.data.forms import FormName
from lada_secure.data.records import PoolSample
from lada_secure.errors import ParameterError
from lada_secure.models.calling import CallingStyle
from lada_secure.models.embedding import embedder
from lada_secure.models.folder import check_folder, read_json
from lada_secure.models.form_probe import FormMeasurement, FormResult, measure_forms
from lada_secure.models.identity import ModelIdentity
from lada_secure.models.loading import LanguageModel, check_architecture, quiet_transformers
from lada_secure.models.memory import MemoryBudget, MemoryForecast, check_memory
from lada_secure.models.placement import Placement
from lada_secure.models.preflight import probe_model
from lada_secure.models.public_questions import public_questions, spread
from lada_secure.models.rehearsal import Rehearsal
from lada_secure.models.style_probe import StyleScore, probe_styles, style_warning
from lada_secure.models.text_model import TextModel
from lada_secure.models.tokenizer import control_texts, own_front

M = TypeVar("M", bound=TextModel)

# A path of a model that reasons needs room; small models fill any.
PATH_TOKENS: Final = 64
_QUESTIONS_AT_ONCE: Final = 16
_SHOWN: Final = 6
# Tokens of bytes that no piece has; "<" in a text may be one of them, and is a text all the same.
_BYTE: Final = re.compile(r"<0x[0-9A-F]{2}>")
_HASH_SHOWN: Final = 12
_MUCH_UNKNOWN: Final = 0.02


def folder_findings(folder: Path) -> Iterator[Found]:
    """The files of a model folder; see `lada_secure.models.folder`.

    Raises: ParameterError: every fault of the files.
    """
    if not folder.is_dir():
        raise ParameterError(
            f"{folder}: there is no such folder; name one in the transformers format, or copy the "
            "model there"
        )
    check_folder(folder)
    with quiet_transformers():
        check_architecture(folder)
    files = sorted(folder.glob("*.safetensors"))
    size = sum(one.stat().st_size for one in files)
    kind = str(read_json(folder / "config.json").get("model_type"))
    yield fine(
        f"{folder}: {kind}, {len(files)} file(s) of weights, {size / 2**20:,.1f} MiB",
        folder=str(folder),
        model_type=kind,
        weight_files=len(files),
        weight_bytes=size,
    )


def model_found(model: ModelIdentity) -> Found:
    """Which model it is."""
    return fine(
        f"{model.sentence()}; weights {model.weights_sha256[:_HASH_SHOWN]}..., tokenizer "
        f"{model.tokenizer_sha256[:_HASH_SHOWN]}..., template "
        f"{model.template_sha256[:_HASH_SHOWN]}...",
        **model.model_dump(),
    )


def place_findings(placement: Placement) -> Iterator[Found]:
    """Where the weights go on this machine. Raises: ParameterError: it cannot do that."""
    placed = placement.on_this_machine()
    packed = f", weights in {placed.quantization}" if placed.quantization else ""
    spread_out = ", over all CUDA devices" if placed.device_map else ""
    again = ", layers computed again on the way back" if placed.gradient_checkpointing else ""
    yield fine(
        f"on {placed.device}{spread_out}, {placed.dtype}{packed}{again}",
        device=placed.device,
        dtype=placed.dtype,
        quantization=placed.quantization,
    )


def memory_found(forecast: MemoryForecast, *, what: str, lower: str) -> Found:
    """Whether a model will fit, by its forecast over a study.

    Args: what, lower: see `check_memory`. Raises: ParameterError: it will not.
    """
    check_memory(forecast, what=what, lower=lower)
    facts: dict[str, JsonValue] = {
        "working_bytes": forecast.working,
        "more_bytes": forecast.more,
        "free_bytes": forecast.free,
    }
    warning = forecast.warning()
    if warning is not None:
        return warn(f"{warning}. {lower}", **facts)
    if forecast.passing:
        return fine(forecast.sentence(), **facts)
    return fine(
        f"the weights and this process take {forecast.working / 1e6:,.0f} MB on {forecast.device}, "
        f"{forecast.free / 1e6:,.0f} MB are free; what a study computes comes on top, and its plan "
        "tells how much",
        **facts,
    )


def weights_memory(folder: Path, placement: Placement) -> MemoryForecast:
    """Of the weights alone, where there is no plan to say what is computed with them.

    Args: placement: `on_this_machine`.
    """
    return MemoryBudget(folder=folder, rehearsal=Rehearsal(folder, placement, None)).forecast()


def loaded_found(lm: TextModel) -> Found:
    """What was loaded, or is served."""
    if not isinstance(lm, LanguageModel):
        return fine(f"{lm.name}: at most {lm.max_tokens} tokens", max_tokens=lm.max_tokens)
    numbers = sum(one.numel() for one in lm.model.parameters())
    dtype = str(lm.model.dtype).removeprefix("torch.")
    device = str(lm.model.device)
    return fine(
        f"loaded: {numbers:,} parameters, {dtype} on {device}, at most {lm.max_tokens} tokens",
        parameters=numbers,
        dtype=dtype,
        device=device,
        max_tokens=lm.max_tokens,
    )


def tokenizer_findings(lm: TextModel, questions: Sequence[PoolSample]) -> Iterator[Found]:
    """Control tokens, the token in front, and whether the tokenizer knows what it will read.

    Raises: ParameterError: a text that spells a control token becomes that token.
    """
    tokenizer = lm.tokenizer
    controls = sorted(control_texts(tokenizer))
    ids = tokenizer.convert_tokens_to_ids(controls)
    spelled = [
        text
        for text, one in zip(controls, ids, strict=True)
        if one != tokenizer.unk_token_id
        and not _BYTE.fullmatch(text)
        and one in lm.tokens_of(f"a {text} b")
    ]
    if spelled:
        raise ParameterError(
            f"a text that spells {', '.join(spelled[:_SHOWN])} becomes that control token; use the "
            "tokenizer.json that the model's maker publishes"
        )
    front = _text(tokenizer, own_front(tokenizer))
    more = f" and {len(controls) - _SHOWN} more" if len(controls) > _SHOWN else ""
    yield fine(
        f"{len(tokenizer):,} tokens; in front of a text it puts {front or 'nothing'} by itself; a "
        f"path ends with {_text(tokenizer, [lm.end_token])}; in data {len(controls)} control "
        f"tokens stay text ({', '.join(controls[:_SHOWN])}{more})",
        tokens=len(tokenizer),
        front=front,
        end=_text(tokenizer, [lm.end_token]),
        control_tokens=len(controls),
    )
    tokens = [one for sample in questions for one in lm.tokens_of(sample.question)]
    unknown = float(np.mean([one == tokenizer.unk_token_id for one in tokens])) if tokens else 0.0
    if tokenizer.unk_token_id is not None and unknown > _MUCH_UNKNOWN:
        yield warn(
            f"{unknown:.0%} of the tokens of the public questions are unknown to it; where your "
            "records are in the language of these questions, use another model, and else name "
            "questions in that of your records with --pool",
            unknown_share=round(unknown, 4),
        )


def style_found(lm: TextModel) -> Found:
    """How questions are put to the model: the style's name and the frame as text."""
    style = lm.style
    frame = frame_text(style, lm)
    return fine(
        f'style "{style.name}", {style.tokens} token(s) around a question: {frame}',
        style=style.name,
        frame_tokens=style.tokens,
        frame=frame,
    )


def frame_text(style: CallingStyle, lm: TextModel) -> str:
    """The frame as it stands around a question, with line breaks as \\n."""
    before = _text(lm.tokenizer, style.head) + style.lead
    after = style.trail + _text(lm.tokenizer, style.tail)
    return f"{before}QUESTION{after}".replace("\n", "\\n")


def _text(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    if not tokens:
        return ""
    return str(tokenizer.decode(list(tokens), clean_up_tokenization_spaces=False))


def embedder_found(*references: str) -> Found:
    """Embedders of a study, or of all. Raises: ParameterError: unknown, or without its weights."""
    sizes: dict[str, JsonValue] = {}
    for reference in references:
        with quiet_transformers():
            vectors = embedder(reference).embed(["What is the capital of France?", ""])
        if not bool(np.isfinite(vectors).all()):
            raise ParameterError(
                f"embedder {reference!r}: a text has a vector that is not finite; install its "
                "weights again"
            )
        sizes[reference] = int(vectors.shape[1])
    shown = ", ".join(f"{reference} of {size} dimensions" for reference, size in sizes.items())
    return fine(shown, dimensions=sizes)


def style_probe_found(lm: TextModel, scores: Sequence[StyleScore]) -> Found:
    """What the probe of styles says; a warning where the chosen one loses."""
    if len(scores) == 1:
        return unneeded(
            f'its tokenizer has no chat template, so "{lm.style.name}" has no style to lose against'
        )
    asked = len(scores[0].right)
    styles: dict[str, JsonValue] = {one.style.name: {**one.figures()} for one in scores}
    told = style_warning(lm, scores)
    if told is not None:
        return warn(told, questions=asked, styles=styles)
    shown = ", ".join(str(one) for one in scores)
    return fine(
        f"of {asked} public questions right: {shown}; no style is better than the chosen one by "
        "more than noise",
        questions=asked,
        styles=styles,
    )


def form_probe_found(found: FormMeasurement, asked_in: FormName | None) -> Found:
    """What the probe of forms says.

    Args: asked_in: the study's form, None where there is no study yet.
    """
    asked = len(found.results[0].right)
    forms: dict[str, JsonValue] = {one.form: {**one.figures()} for one in found.results}
    shown = ", ".join(_shown(one) for one in found.results)
    told = _form_warning(found, asked_in)
    said = (
        f"of {asked} public questions right: {shown}; recommended is {found.recommended}"
        f"{f'. {told}' if told else ''}"
    )
    return (warn if told else fine)(
        said, questions=asked, forms=forms, recommended=found.recommended
    )


def _shown(one: FormResult) -> str:
    return (
        f"{one.form} {one.accuracy:.1%} (standard error {one.standard_error:.1%}, "
        f"{one.readable_share:.0%} readable)"
    )


def _form_warning(found: FormMeasurement, asked_in: FormName | None) -> str:
    able = [one.form for one in found.results if one.above_chance]
    if not able:
        return (
            "In none of them is it right more often than by guessing: ask it public questions "
            "nearer to its subject with --pool, or use a model that knows more"
        )
    if asked_in is None:
        return ""
    if asked_in not in able:
        return (
            f'The study asks in "{asked_in}", in which this model is right no more often than by '
            "guessing: it learns little from paths and its own answers say nothing. Propose "
            f'answer_form = "{found.recommended}", or use another model'
        )
    if asked_in in found.worse:
        return (
            f'The study asks in "{asked_in}", which this model does worse than '
            f'"{found.recommended}" by more than noise; propose that as answer_form'
        )
    return ""


@dataclass(slots=True, kw_only=True)
class ModelChecks(Generic[M]):
    """Checks of one model. A value is asked for at its first use, when its own check has passed.

    what: the model's part in the study, for messages. load: opens it. pool: public questions, none
    for the built-in ones. asked_in: the study's form, None where there is no study yet. batch_size:
    texts at a time. path_tokens: what it may write, at most.
    """

    what: str
    load: Callable[[], M]
    pool: Callable[[], Sequence[PoolSample]]
    asked_in: Callable[[], FormName | None]
    path_tokens: Callable[[], int]
    batch_size: Callable[[], int]
    request: Request
    _lm: M | None = None

    @property
    def lm(self) -> M:
        """The model, opened once."""
        if self._lm is None:
            self._lm = self.load()
        return self._lm

    @property
    def questions(self) -> list[PoolSample]:
        """Evenly spaced public questions: of the pool, or built-in ones."""
        return spread(self.pool() or public_questions(), self.request.questions)

    def loaded(self) -> Iterator[Found]:
        """What was loaded. Raises: LadaError: it cannot be loaded, or nobody serves it."""
        yield loaded_found(self.lm)

    def tokenizer(self) -> Iterator[Found]:
        """See `tokenizer_findings`."""
        yield from tokenizer_findings(self.lm, self.questions)

    def style(self) -> Iterator[Found]:
        """See `style_found`."""
        yield style_found(self.lm)

    def answers(self) -> Iterator[Found]:
        """A call of the model. Raises: ParameterError: it cannot be used."""
        probe_model(self.lm, what=self.what)
        yield fine(
            "answers made-up tokens: every score is finite, is the same with a cache as without, "
            "and does not look ahead"
        )

    def probe_styles(self) -> Iterator[Found]:
        """Accuracy in every style that the model has; a warning where the chosen one loses."""
        questions, progress = self.questions, self.request.progress
        scores = probe_styles(self.lm, questions, batch_size=self._at_once, progress=progress)
        yield style_probe_found(self.lm, scores)

    def probe_forms(self) -> Iterator[Found]:
        """Which answer forms the model can do, and which to take."""
        # A model of few tokens must keep room for the question.
        found = measure_forms(
            self.lm,
            self.questions,
            batch_size=self._at_once,
            max_new_tokens=min(self.path_tokens(), max(1, self.lm.room // 2)),
            progress=self.request.progress,
        )
        yield form_probe_found(found, self.asked_in())

    @property
    def _at_once(self) -> int:
        # No more, so that progress is told now and then.
        return min(self.batch_size(), _QUESTIONS_AT_ONCE)
