"""From an endpoint and a tokenizer folder to a served LLM that has passed the probe."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from transformers import PreTrainedTokenizerBase

from lada_secure.errors import ParameterError
from lada_secure.models.calling import open_style
from lada_secure.models.calling_settings import Calling
from lada_secure.models.endpoint.cache import AnswerCache
from lada_secure.models.endpoint.completions import Completions
from lada_secure.models.endpoint.dialects import all_dialects
from lada_secure.models.endpoint.http import Endpoint, HttpClient
from lada_secure.models.endpoint.model import EndpointModel
from lada_secure.models.endpoint.probe import Fingerprint, Probe, parse_fingerprint
from lada_secure.models.loading import quiet_transformers
from lada_secure.models.tokenizer import load_tokenizer, spelled_controls
from lada_secure.storage.whole_files import read_if_there, replace_file

_CACHE: Final = "answers.sqlite"
_FINGERPRINT: Final = "fingerprint.json"
# A server that is not there before a study began is not waited for.
_FIRST_PATIENCE_S: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedFolder:
    """What is kept of a served LLM over restarts: its fingerprint, and its answers."""

    folder: Path

    def fingerprint(self) -> Fingerprint | None:
        """The one of the first probe; None before it.

        Raises: ParameterError: damaged. TransportError: unreadable.
        """
        raw = read_if_there(self.folder / _FINGERPRINT)
        return None if raw is None else parse_fingerprint(raw)

    def keep(self, fingerprint: Fingerprint) -> None:
        """Remember it. Raises: OSError: the disk refuses."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        replace_file(self.folder / _FINGERPRINT, fingerprint.to_bytes(), mode=0o600)

    def cache(self) -> AnswerCache:
        """The answers."""
        return AnswerCache(self.folder / _CACHE)


def open_endpoint(
    endpoint: Endpoint, *, tokenizer: Path, kept: ServedFolder, calling: Calling | None = None
) -> EndpointModel:
    """Reach a server, try what it can do, compare it with what it was, and keep what it says.

    Args: calling: how the model is to be called; None is "plain".
    Raises: see `reach_endpoint`.
    """
    before = kept.fingerprint()
    model, found = reach_endpoint(endpoint, tokenizer=tokenizer, before=before, calling=calling)
    try:
        if before is None:
            kept.keep(found)
        return replace(model, served=replace(model.served, cache=kept.cache()))
    except BaseException:
        model.served.close()
        raise


def reach_endpoint(
    endpoint: Endpoint,
    *,
    tokenizer: Path,
    before: Fingerprint | None,
    calling: Calling | None = None,
) -> tuple[EndpointModel, Fingerprint]:
    """Reach a server, try what it can do, and compare it with what it was; keeps nothing.

    Before a study began a server has to answer at once; one that is gone on with is waited for.

    Args: before: what it was; None where no study began with it. calling: as in `open_endpoint`.
    Raises: ParameterError: no tokenizer, another model, or an ability is missing.
        TransportError: no usable answer.
    """
    calling = calling or Calling()
    encoder = _tokenizer(tokenizer)
    http = HttpClient(endpoint)
    dialects = all_dialects(encoder)
    model = EndpointModel(
        tokenizer=encoder,
        name=f"{endpoint.model} at {endpoint.root}",
        max_tokens=calling.max_tokens,
        style=open_style(calling, encoder, name=endpoint.model),
        spelled=spelled_controls(encoder),
        served=Completions(
            http=http, dialect=dialects[0], model=endpoint.model, identity="", end_tokens=()
        ),
    )
    try:
        dialect, found, longest = Probe(
            http=http,
            model=endpoint.model,
            encode=model.encode_prompt,
            dialects=dialects,
            end_tokens=model.end_tokens,
            patience_s=(
                min(_FIRST_PATIENCE_S, endpoint.patience_s)
                if before is None
                else endpoint.patience_s
            ),
            spoken=None if before is None else before.dialect,
        ).run()
        known = found if before is None else before
        known.check_same(found)
    except BaseException:
        http.close()
        raise
    served = replace(
        model.served,
        dialect=dialect,
        identity=known.identity,
        end_tokens=model.end_tokens,
    )
    most = min(longest or calling.max_tokens, calling.max_tokens)
    return replace(model, max_tokens=most, served=served), found


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    try:
        with quiet_transformers():
            found = load_tokenizer(folder)
    except Exception as error:
        # Readers of tokenizers raise whatever they like, plain Exception included.
        first = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise ParameterError(
            f"llm.tokenizer {folder}: no readable tokenizer ({first}); copy tokenizer.json and "
            "tokenizer_config.json of the served model there"
        ) from error
    if found.eos_token_id is None:
        raise ParameterError(
            f"llm.tokenizer {folder}: the tokenizer has no end token; paths could not end"
        )
    return found
