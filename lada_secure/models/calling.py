"""How a model is called: which tokens stand around a question, and how an answer joins it.

    head | lead  question  trail | tail | answer | end

Head and tail are control tokens (a beginning-of-sequence token, the marks of a chat's turns) and
whatever stands between them; lead and trail are the plain text of a template next to the question.
The question is tokenized together with lead and trail, as its maker's own code would do it; but
what a record says is a text, whatever control token it spells.

Three styles. "plain": the question as it is, behind the special tokens that the tokenizer itself
puts in front. "chat": as the user's turn of the tokenizer's chat template. "template": in a jinja2
template of the site's own that shows `{{ question }}`.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from jinja2 import nodes
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers import PreTrainedTokenizerBase

from lada_secure.errors import ParameterError
from lada_secure.models.calling_settings import Calling

LOG = logging.getLogger(__name__)

# Templates that tell the model today's date would make tomorrow's tokens other ones.
_DAY: Final = datetime(2025, 1, 1, tzinfo=UTC)
_QUESTION: Final = "Question0of1a2placeholder"
_ANSWER: Final = "Answer0of1a2placeholder"


@dataclass(frozen=True, slots=True, kw_only=True)
class CallingStyle:
    """The frame around every question; see the module.

    end: ends the model's turn; None for the tokenizer's own end token. tokens: of the whole frame.
    """

    name: str = "plain"
    head: tuple[int, ...] = ()
    lead: str = ""
    trail: str = ""
    tail: tuple[int, ...] = ()
    end: int | None = None
    tokens: int = 0

    @property
    def framed(self) -> bool:
        """Whether something follows the question, so that the answer begins a text of its own."""
        return bool(self.tail or self.trail)

    def question(self, prompt: str) -> str:
        """What is tokenized for a prompt, with the template's text around it."""
        return f"{self.lead}{prompt.rstrip() if self.framed else prompt}{self.trail}"

    def answer(self, path: str) -> str:
        """What is tokenized of a path: in a frame, without or with a space as the frame wants."""
        if not self.framed:
            return path
        own = path.removeprefix(" ")
        joins = not self.tail and not self.trail[-1:].isspace() and not own[:1].isspace()
        return f" {own}" if joins and own else own

    def path(self, prompt: str, written: str) -> str:
        """What a model wrote as the path that follows the prompt: the inverse of `answer`.

        Paths travel between models that are called in different ways.
        """
        if not self.framed:
            return written
        own = written.removeprefix(" ")
        joins = bool(prompt) and not prompt[-1].isspace() and not own[:1].isspace()
        return f" {own}" if joins and own else own


def open_style(calling: Calling, tokenizer: PreTrainedTokenizerBase, *, name: str) -> CallingStyle:
    """The style that a model is to be called in.

    Args: name: the model's, for messages.
    Raises: ParameterError: no template, or one that cannot be used.
    """
    front = own_front(tokenizer)
    text = calling.template_text()
    if text is not None:
        return _framed(tokenizer, text, name=str(calling.template), style="template", front=front)
    if calling.style == "chat":
        return _framed(tokenizer, _chat_template(tokenizer, name), name=name, style="chat")
    return CallingStyle(head=front, tokens=len(front))


def own_front(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The special tokens that a tokenizer itself puts in front of a text."""
    with_front: list[int] = tokenizer("1")["input_ids"]
    alone: list[int] = tokenizer("1", add_special_tokens=False)["input_ids"]
    for at in range(len(with_front) - len(alone) + 1):
        if with_front[at : at + len(alone)] == alone:
            return tuple(with_front[:at])
    return ()


def control_texts(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Texts that a tokenizer takes for tokens of their own wherever they stand, and what they are.

    Without those that are plain text (runs of spaces and line breaks, as Gemma has them).
    """
    added = tokenizer.backend_tokenizer.get_added_tokens_decoder().values()
    return {one.content: one for one in added if one.special or _looks_like_a_mark(one.content)}


def _looks_like_a_mark(text: str) -> bool:
    return bool(re.fullmatch(r"<[^<>\s]*[A-Za-z][^<>\s]*>|\[[^\[\]\s]*[A-Za-z][^\[\]\s]*\]", text))


def _chat_template(tokenizer: PreTrainedTokenizerBase, name: str) -> str:
    found = tokenizer.chat_template
    if isinstance(found, dict):
        found = found.get("default")
    if not found:
        raise ParameterError(
            f'style "chat": the tokenizer of {name!r} has no chat template; it is a base model, or '
            'chat_template.jinja was not copied. Call it in style "plain", or name a template'
        )
    return str(found)


class _Generation(Extension):
    """`{% generation %}`, which some templates mark the answer with, as plain text."""

    tags: set[str] = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The nodes between the tag and its end."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise(message: str) -> None:
    raise TemplateError(message)


def _render(template: str, tokenizer: PreTrainedTokenizerBase, *, name: str, **given: Any) -> str:
    """Render a stranger's template in a sandbox.

    Raises: ParameterError: whatever the template does wrong.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, loopcontrols],
    )
    environment.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
    environment.globals.update(raise_exception=_raise, strftime_now=_DAY.strftime)
    try:
        return environment.from_string(template).render(
            **{
                key: str(value)
                for key, value in tokenizer.special_tokens_map.items()
                if isinstance(value, str)
            },
            tools=None,
            documents=None,
            enable_thinking=False,
            **given,
        )
    except Exception as error:
        # Templates are programs of strangers and end in any way; no record has been near them.
        said = str(error) or type(error).__name__
        raise ParameterError(
            f"{name}: its template cannot be used: {said.splitlines()[0]}; call the model in "
            'style "plain", or name a template that shows {{ question }} once'
        ) from error


def _framed(
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    *,
    name: str,
    style: str,
    front: tuple[int, ...] = (),
) -> CallingStyle:
    asked = {"role": "user", "content": _QUESTION}
    rendered = _render(
        template,
        tokenizer,
        name=name,
        messages=[asked],
        question=_QUESTION,
        add_generation_prompt=True,
    )
    if rendered.count(_QUESTION) != 1:
        raise ParameterError(
            f"{name}: its template shows the question {rendered.count(_QUESTION)} times, expected "
            'once; call the model in style "plain", or name another template'
        )
    before, after = rendered.split(_QUESTION)
    controls = control_texts(tokenizer)
    marks = list(_marks(controls).finditer(before))
    cut = marks[-1].end() if marks else 0
    lead = before[cut:]
    if marks and controls[marks[-1].group()].rstrip:
        lead = lead.lstrip()
    following = _marks(controls).search(after)
    trail = after[: following.start()] if following else after
    if following and controls[following.group()].lstrip:
        trail = trail.rstrip()
    head = _with_controls(tokenizer, before[:cut])
    tail = _with_controls(tokenizer, after[following.start() :] if following else "")
    # A site's own template may leave the token that begins every text to the tokenizer.
    if front and head[: len(front)] != front:
        head = (*front, *head)
    found = CallingStyle(
        name=style,
        head=head,
        lead=lead,
        trail=trail,
        tail=tail,
        tokens=len(head) + len(_with_controls(tokenizer, lead + trail)) + len(tail),
        end=_end_of_turn(template, tokenizer, name, controls) if style == "chat" else None,
    )
    _compare(found, tokenizer, rendered, name=name, added=front)
    return found


def _marks(controls: dict[str, Any]) -> re.Pattern[str]:
    longest_first = sorted(controls, key=len, reverse=True)
    # An empty alternation would match everywhere.
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _with_controls(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    """Tokens of a template's own text, whose control tokens are meant. Never of a record."""
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=False)["input_ids"]
    return tuple(int(one) for one in ids)


def _end_of_turn(
    template: str, tokenizer: PreTrainedTokenizerBase, name: str, controls: dict[str, Any]
) -> int | None:
    """The control token that the template puts behind an answer; None where there is none."""
    turns = [{"role": "user", "content": _QUESTION}, {"role": "assistant", "content": _ANSWER}]
    rendered = _render(
        template,
        tokenizer,
        name=name,
        messages=turns,
        question=_QUESTION,
        add_generation_prompt=False,
    )
    _, found, after = rendered.rpartition(_ANSWER)
    mark = _marks(controls).match(after.lstrip()) if found else None
    return None if mark is None else int(tokenizer.convert_tokens_to_ids(mark.group()))


def _compare(
    style: CallingStyle,
    tokenizer: PreTrainedTokenizerBase,
    rendered: str,
    *,
    name: str,
    added: tuple[int, ...],
) -> None:
    """Warn where a frame in parts has other tokens than the template as a whole."""
    whole = _with_controls(tokenizer, rendered)
    parts = (
        *style.head,
        *_with_controls(tokenizer, style.question(_QUESTION)),
        *style.tail,
    )
    if parts not in (whole, (*added, *whole)):
        LOG.warning(
            "%s: its template is tokenized in parts here and has other tokens as a whole "
            "(%d against %d); compare the styles before relying on it",
            name,
            len(parts),
            len(whole),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """A prompt and a path in tokens: `context` is read, `target` is written or scored.

    kept: so many tokens at the context's start belong to the frame and are never cut.
    """

    context: tuple[int, ...]
    target: tuple[int, ...]
    kept: int

    def fitted(self, room: int) -> tuple[int, ...]:
        """The context's frame and the last of its question, at most `room` tokens."""
        over = len(self.context) - room
        if over <= 0:
            return self.context
        return (*self.context[: self.kept], *self.context[self.kept + over :])


def join(
    style: CallingStyle, tokens_of: Callable[[str], Sequence[int]], prompt: str, path: str
) -> Joined:
    """Tokenize a prompt and what follows it, as the model would see both in one text.

    Behind a tail the path stands alone. Without one, question and path are one text, and merges may
    cross the seam: the context is then what the text has in common with the question alone, and a
    token that spans the seam is the target's.

    Args: tokens_of: tokenizes a text without special tokens, whatever the text is.
    """
    question, answer = style.question(prompt), style.answer(path)
    alone = tuple(tokens_of(question))
    kept = len(style.head)
    if style.lead:
        kept += common_length(alone, tuple(tokens_of(style.lead)))
    if style.tail:
        context = (*style.head, *alone, *style.tail)
        return Joined(context=context, target=tuple(tokens_of(answer)), kept=kept)
    whole = tuple(tokens_of(question + answer)) if answer else alone
    shared = common_length(alone, whole)
    return Joined(
        context=(*style.head, *whole[:shared]),
        target=whole[shared:],
        kept=min(kept, len(style.head) + shared),
    )


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """Number of tokens that two sequences begin with in common."""
    for at, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return at
    return min(len(first), len(second))
