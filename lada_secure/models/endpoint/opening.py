"""From an endpoint and a tokenizer folder to a served LLM that has passed the probe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lada_secure.errors import ParameterError
from lada_secure.models.endpoint.cache import AnswerCache
from lada_secure.models.endpoint.completions import Completions
from lada_secure.models.endpoint.dialects import all_dialects
from lada_secure.models.endpoint.http import Endpoint, HttpClient
from lada_secure.models.endpoint.model import EndpointModel
from lada_secure.models.endpoint.probe import Fingerprint, Probe, parse_fingerprint
from lada_secure.models.loading import MAX_TOKENS, quiet_transformers
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


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder in the transformers format.

    Raises: ParameterError: there is none, or it has no end token.
    """
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        # Readers of tokenizers raise whatever they like, plain Exception included.
        first = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise ParameterError(
            f"llm.tokenizer {folder}: no readable tokenizer ({first}); copy tokenizer.json and "
            "tokenizer_config.json of the served model there"
        ) from error
    if tokenizer.eos_token_id is None:
        raise ParameterError(
            f"llm.tokenizer {folder}: the tokenizer has no end token; paths could not end"
        )
    found: PreTrainedTokenizerBase = tokenizer
    return found


def open_endpoint(endpoint: Endpoint, *, tokenizer: Path, kept: ServedFolder) -> EndpointModel:
    """Reach a server, try what it can do, and compare it with what it was.

    Before a study began a server has to answer at once; one that is gone on with is waited for.

    Raises: ParameterError: no tokenizer, another model, or an ability is missing.
        TransportError: no usable answer.
    """
    encoder = load_tokenizer(tokenizer)
    ends = (int(encoder.eos_token_id),)
    before = kept.fingerprint()
    http = HttpClient(endpoint)
    try:
        dialect, found, longest = Probe(
            http=http,
            model=endpoint.model,
            encode=lambda text: [
                int(one) for one in encoder(text, add_special_tokens=False)["input_ids"]
            ],
            dialects=all_dialects(encoder),
            end_tokens=ends,
            patience_s=_FIRST_PATIENCE_S if before is None else endpoint.patience_s,
        ).run()
        if before is None:
            before = found
            kept.keep(found)
        before.check_same(found)
    except BaseException:
        http.close()
        raise
    return EndpointModel(
        tokenizer=encoder,
        name=f"{endpoint.model} at {endpoint.root}",
        max_tokens=min(longest or MAX_TOKENS, MAX_TOKENS),
        served=Completions(
            http=http,
            dialect=dialect,
            model=endpoint.model,
            identity=before.identity,
            end_tokens=ends,
            cache=kept.cache(),
        ),
    )
