"""The tokenizer of a model folder, and what of its tokens is control and what is text."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from tokenizers import AddedToken, Tokenizer, processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lada_secure.models.folder import read_json

# Spaces, line breaks, digits, marks and letters of several scripts: where tokenizers differ.
_SAMPLE: Final = (
    "Group?\nAnswer:  42 1,000.5\n\n\tNaïve, e.g. GmbH's Über-größe "
    "\u65e5\u672c \u0434\u0430 \U0001f600"
)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of tokenizer.json, with the special tokens and template of its configuration.

    Some of the library's classes build another tokenizer than the file holds, with their own idea
    of spaces and special tokens; then the file counts.
    """
    found = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    written = Tokenizer.from_file(str(folder / "tokenizer.json"))
    if any(
        found(_SAMPLE, add_special_tokens=special)["input_ids"]
        != written.encode(_SAMPLE, add_special_tokens=special).ids
        for special in (False, True)
    ):
        template = found.chat_template
        found = PreTrainedTokenizerFast(
            tokenizer_object=written,
            clean_up_tokenization_spaces=False,
            **found.special_tokens_map,
        )
        found.chat_template = template
    _put_in_front(found, read_json(folder / "tokenizer_config.json").get("add_bos_token"))
    # Marks such as "<think>" that are not listed as special: in a record they are text as well.
    found.backend_tokenizer.add_special_tokens(
        [
            AddedToken(
                text, special=True, normalized=False, lstrip=token.lstrip, rstrip=token.rstrip
            )
            for text, token in control_texts(found).items()
            if not token.special
        ]
    )
    return found


def _put_in_front(tokenizer: PreTrainedTokenizerBase, adds_bos: object) -> None:
    """Obey a configuration that says whether a text begins with the BOS token."""
    bos, has = tokenizer.bos_token, tokenizer.bos_token_id in own_front(tokenizer)
    if not isinstance(adds_bos, bool) or bos is None or adds_bos == has:
        return
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A" if adds_bos else "$A",
        special_tokens=[(bos, tokenizer.bos_token_id)],
    )


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


def spelled_controls(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Control tokens that come out of their texts although they are not looked for.

    A Unigram vocabulary lists them among its pieces. The unknown token means nothing and stays.
    """
    texts = [text for text in control_texts(tokenizer) if text != tokenizer.unk_token]
    if not texts:
        return {}
    told = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    ids = tokenizer.convert_tokens_to_ids(texts)
    return {
        text: int(token)
        for text, token, found in zip(texts, ids, told, strict=True)
        if token in found
    }


def largest_token(tokenizer: PreTrainedTokenizerBase, *, used: Iterable[int]) -> int:
    """The largest token that a text, or one of `used`, can bring before the model.

    Added tokens beyond it (placeholders for images) come from no text: controls are text.
    """
    backend, controls = tokenizer.backend_tokenizer, control_texts(tokenizer)
    added = backend.get_added_tokens_decoder()
    plain: list[int] = [token for token, one in added.items() if one.content not in controls]
    # The model's own vocabulary lists control tokens as well, under the same numbers.
    own: dict[str, int] = backend.get_vocab(with_added_tokens=False)
    pieces = [token for text, token in own.items() if text not in controls]
    return max((*plain, *used, *pieces))
