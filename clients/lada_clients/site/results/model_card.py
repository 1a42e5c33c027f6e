"""The card of an exported model: what it is, what it cost, and what it must not be used for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined

from lada_clients.reports.web_page import plain_number
from lada_clients.site.results.evaluation import Evaluation
from lada_secure.models.text_model import ModelTexts

_OPTIONS: Final = ("FIRST", "SECOND")


def calls_of(lm: ModelTexts) -> dict[str, dict[str, Any]]:
    """What a model reads and writes for an open question and for one with two options.

    reads: the text between the frame's tokens. writes: what training has shown behind it. scored:
    of forms in which the answer comes first, what is compared to choose an option.
    """

    def call(answer: str, choices: tuple[str, ...]) -> dict[str, Any]:
        form, style = lm.form, lm.style
        scored = () if form.writes_first(choices) else form.options(choices)
        return {
            "reads": style.question(form.prompt("QUESTION", choices)),
            "writes": style.answer(form.target(answer, choices, "REASON")),
            "scored": [style.answer(one) for one in scored],
        }

    return {"open": call("ANSWER", ()), "two options": call("FIRST", _OPTIONS)}


def card_text(facts: Mapping[str, Any], measured: Evaluation | None) -> str:
    """Markdown with the head that model hubs read.

    Args: facts: as `lada.json` has them. measured: figures to put in, None for none.
    """
    environment = Environment(
        loader=PackageLoader(__name__, "."),
        # Markdown, not HTML: what people have written is quoted by `plain`.
        autoescape=False,  # noqa: S701
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "plain": _plain,
        "plain_number": plain_number,
        # Its quotes and escapes are Python's as well; the filter `tojson` escapes for HTML.
        "quoted": lambda value: json.dumps(value, ensure_ascii=False),
    }
    shown = None if measured is None else measured.sentences_of_the_study()
    template = environment.get_template("model_card.md.j2")
    return template.render(facts=facts, figures=shown)


def _plain(text: object) -> str:
    """One line without what Markdown, HTML or YAML would read as something else."""
    line = " ".join(str(text).split())
    return "".join(f"\\{one}" if one in "\\`*_[]<>|#" else one for one in line)
