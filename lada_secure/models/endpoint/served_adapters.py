"""LoRA adapters at a server that loads them while it runs, as vLLM does.

Adapters are written in PEFT's format into a folder that this side and the server both see under one
path, and the server is told to load them under a name of their own. What it then answers is
compared with what the same adapters do to the weights here, before anything depends on it.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from lada_secure.arrays import FloatArray
from lada_secure.errors import ParameterError, TransportError
from lada_secure.models.adapters import AdapterWeights, load_adapters, save_as_lora
from lada_secure.models.endpoint.dialects import Lacking
from lada_secure.models.endpoint.http import HttpClient, NotThere
from lada_secure.models.endpoint.replies import MAX_MODELS_BYTES, ModelList, parse_reply
from lada_secure.models.loading import LanguageModel
from lada_secure.models.text_model import TextModel

_HAVE: Final = (
    "vLLM has it where it is started with --enable-lora, a --max-lora-rank that is large enough, "
    "and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"
)
_MAX_SAID_BYTES: Final = 64 * 1024
# Server and this side may differ in what adapters change: by a share of it, and by what a server
# rounds that computes in short numbers, nats a token.
_SHARE: Final = 0.25
_ROUNDING: Final = 0.1
# Many requests may find at once that a server has forgotten its adapters.
_ONE_AT_A_TIME: Final = threading.Lock()
# A change that none of both can hide.
CLEAR_CHANGE: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedAdapters:
    """Adapters at one server. folder: where both sides find them. base: the model's served name."""

    http: HttpClient
    folder: Path
    base: str

    def name(self, weights: AdapterWeights) -> str:
        """What the server calls a model with these adapters."""
        return f"lada-{weights.sha256[:24]}"

    def load(self, lm: LanguageModel, weights: AdapterWeights) -> str:
        """Write adapters and have the server load them. Returns: the served model's name.

        Args: lm: with adapters of the same settings; may become these.
        Raises: Lacking: the server cannot. TransportError: it does not answer, or the folder cannot
            be written.
        """
        name = self.name(weights)
        with _ONE_AT_A_TIME:
            path = self._written(lm, weights, name)
            if name not in self._served():
                self._loaded(name, path)
        return name

    def unload(self, name: str) -> None:
        """Have the server forget adapters; one that does not know them has forgotten them."""
        try:
            self.http.post(
                "/unload_lora_adapter",
                {"lora_name": name},
                max_bytes=_MAX_SAID_BYTES,
                patience_s=self.http.endpoint.timeout_s,
            )
        except ParameterError:
            return

    def _written(self, lm: LanguageModel, weights: AdapterWeights, name: str) -> Path:
        path = self.folder / name
        if (path / "adapter_config.json").exists():
            return path
        load_adapters(lm, weights)
        part = self.folder / f".{name}"
        model: Any = lm.model
        # What a server reads of it is the model that it serves, not a path of this machine.
        vars(model.peft_config["default"])["base_model_name_or_path"] = self.base
        try:
            shutil.rmtree(part, ignore_errors=True)
            save_as_lora(lm, part)
            part.rename(path)
        except OSError as error:
            raise TransportError(
                f"cannot write adapters to llm.adapters {self.folder}: {error.strerror}"
            ) from error
        return path

    def _loaded(self, name: str, path: Path) -> None:
        try:
            self.http.post(
                "/load_lora_adapter",
                {"lora_name": name, "lora_path": str(path)},
                max_bytes=_MAX_SAID_BYTES,
                patience_s=self.http.endpoint.timeout_s,
            )
        except NotThere as error:
            raise Lacking("adapters that it loads while it runs", str(error), _HAVE) from error
        except ParameterError as error:
            raise Lacking(
                "adapters that it loads while it runs",
                f"{error}; does the server see {path} under the same path?",
                _HAVE,
            ) from error
        if name not in self._served():
            raise Lacking(
                "adapters that it loads while it runs",
                f"it said yes, and does not list {name} among its models",
                _HAVE,
            )

    def _served(self) -> set[str]:
        lists: list[ModelList] = []
        self.http.get(
            "/models",
            max_bytes=MAX_MODELS_BYTES,
            patience_s=self.http.endpoint.patience_s,
            read=lambda raw: lists.append(parse_reply(raw, ModelList)),
        )
        return {card.id for card in lists[-1].data}


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputsBefore:
    """Log-probabilities of known targets before adapters, here and at the server, (n,) each."""

    here: FloatArray
    there: FloatArray


def outputs(lm: TextModel, rows: Sequence[Sequence[int]]) -> FloatArray:
    """Log-probability per token of all but the first two tokens of each row, (n,)."""
    targets = [len(row) - 2 for row in rows]
    scores = lm.target_log_probabilities(rows, targets, batch_size=len(rows))
    return scores / np.array(targets, dtype=np.float64)


def change(before: FloatArray, after: FloatArray) -> float:
    """By how much outputs moved: root of the mean square, nats a token."""
    return float(np.sqrt(np.mean((after - before) ** 2)))


def check_change(before: OutputsBefore, *, here: FloatArray, there: FloatArray) -> None:
    """Adapters must do at the server what they do to the weights here.

    The server's own numbers may differ from these (it may quantise); what adapters change must not.

    Args: here, there: as `before`, with the adapters, (n,).
    Raises: Lacking: they change nothing there, or something else.
    """
    wanted, got = here - before.here, there - before.there
    size, apart = change(before.here, here), change(wanted, got)
    if apart > _SHARE * size + _ROUNDING:
        moved = change(before.there, there)
        raise Lacking(
            "adapters that it loads while it runs",
            f"log-probabilities of known texts moved by {moved:.2g} nats a token there and by "
            f"{size:.2g} here, {apart:.2g} apart; is the folder in llm.tokenizer that of the "
            "served model?",
            _HAVE,
        )
