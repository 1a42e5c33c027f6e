"""The LLM of the settings for whoever asks it public questions before a study: nothing is kept."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from lada_secure.data.forms import AnswerForm
from lada_secure.models.endpoint.opening import ServedFolder, reach_endpoint
from lada_secure.models.text_model import TextModel
from lada_server.settings import ServerSettings
from lada_server.study.coordinator import LLM_FOLDER, open_llm

# A server that is not there now is not waited for.
_PATIENCE_S: Final = 5.0


def look_at_llm(settings: ServerSettings, form: AnswerForm) -> TextModel:
    """Load it, or reach its server, and set the form that it is asked in.

    Raises: ParameterError: it cannot be used. TransportError: its server does not answer.
    """
    if isinstance(settings.llm, str):
        return open_llm(settings).model.with_form(form)
    served, _ = reach_endpoint(
        replace(settings.llm.address(), patience_s=_PATIENCE_S),
        tokenizer=settings.llm.tokenizer,
        before=ServedFolder(folder=settings.state_dir / LLM_FOLDER).fingerprint(),
        calling=settings.model.calling,
    )
    return served.with_form(form)
