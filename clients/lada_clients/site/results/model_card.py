"""The card of an exported model: what it is, what it cost, and what it must not be used for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from lada_clients.reports.web_page import plain_number
from lada_clients.site.results.evaluation import Evaluation


def card_text(facts: Mapping[str, Any], measured: Evaluation | None, *, example: str) -> str:
    """Markdown with the head that model hubs read.

    Args: facts: as `lada.json` has them. measured: figures to put in, None for none. example: what
        the model reads of a question with two options.
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
    environment.filters |= {"plain": _plain, "plain_number": plain_number}
    shown = None if measured is None else measured.sentences_of_the_study()
    template = environment.get_template("model_card.md.j2")
    return template.render(facts=facts, figures=shown, example=example)


def _plain(text: object) -> str:
    """One line without what Markdown, HTML or YAML would read as something else."""
    line = " ".join(str(text).split())
    return "".join(f"\\{one}" if one in "\\`*_[]<>|#" else one for one in line)
