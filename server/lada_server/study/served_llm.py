"""An LLM behind a server; adapters are trained on the same weights here and served there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch

from lada_secure.data.records import PoolSample
from lada_secure.errors import ParameterError
from lada_secure.method.mechanisms import adapter_settings
from lada_secure.method.plan import MethodPlan, transfer_of
from lada_secure.models.adapters import (
    AdapterWeights,
    adapter_weights,
    attach_adapters,
    load_adapters,
    parse_adapter_tensors,
    weights_of,
)
from lada_secure.models.calling_settings import Calling
from lada_secure.models.endpoint.http import Endpoint
from lada_secure.models.endpoint.model import EndpointModel
from lada_secure.models.endpoint.opening import ServedFolder, open_endpoint
from lada_secure.models.endpoint.probe import KNOWN_TEXTS, check_length
from lada_secure.models.endpoint.served_adapters import (
    CLEAR_CHANGE,
    OutputsBefore,
    ServedAdapters,
    change,
    check_change,
    outputs,
)
from lada_secure.models.examples import RationaleExample
from lada_secure.models.loading import LanguageModel, load_folder
from lada_secure.models.placement import Placement
from lada_secure.models.tuning import TuningSettings, tune_on_rationales
from lada_server.study.llm_memory import check_llm_memory

# Standard deviations of the adapters that are tried before a study, smallest first.
_TRIED_SCALES: Final = (0.02, 0.1, 0.5, 2.5)


class ServedLlm:
    """See `CoordinatorLlm`.

    tokenizer: folder with the tokenizer and, for a transfer, the weights. adapters: folder that
    this machine and the server see under one path; None where no transfer is wanted. placement: of
    the weights that a transfer is trained on here.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        tokenizer: Path,
        adapters: Path | None,
        kept: ServedFolder,
        threads: int,
        calling: Calling | None = None,
        placement: Placement | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._calling = calling or Calling()
        self._calling_sha256 = self._calling.sha256
        self._placement = placement or Placement()
        self._tokenizer = tokenizer
        self._adapters = adapters
        self._kept = kept
        self._threads = threads
        self._progress: Callable[[int, int], None] = lambda _done, _all: None
        self._base: EndpointModel | None = None
        self._now: EndpointModel | None = None
        self._trained: _TrainedHere | None = None
        self._weights: AdapterWeights | None = None
        self._before: OutputsBefore | None = None

    @property
    def reference(self) -> str:
        """See `CoordinatorLlm`; the same wherever the server has moved to."""
        return f"served {self._opened().served.identity} {self._calling_sha256}"

    @property
    def model(self) -> EndpointModel:
        """See `CoordinatorLlm`."""
        return self._now or self._opened()

    def _opened(self) -> EndpointModel:
        if self._base is None:
            base = open_endpoint(
                self._endpoint,
                tokenizer=self._tokenizer,
                kept=self._kept,
                calling=self._calling,
            )
            self._base = replace(base, served=replace(base.served, watch=self._progress))
        return self._base

    def check_memory(self, plan: MethodPlan, pool: Sequence[PoolSample]) -> None:
        """See `CoordinatorLlm`; weights are loaded here where a transfer trains on them."""
        if plan.uplink is not None:
            check_llm_memory(
                plan, pool, self._tokenizer, calling=self._calling, placement=self._placement
            )

    def check_length(self, tokens: int) -> None:
        """See `CoordinatorLlm`; has the server read so many."""
        base = self._opened()
        check_length(base.served, lambda text: base.encode_prompt(text, room=tokens))

    def check_transfer(self, plan: MethodPlan) -> None:
        """See `CoordinatorLlm`; has the server load adapters that are made up, and forgets them."""
        if self._adapters is None:
            raise ParameterError(
                "the study has an [uplink], and llm.adapters is missing: name a folder that this "
                "machine and the inference server see under one path, or leave [uplink] out"
            )
        trained = self._trained_here(plan)
        self.become(plan, self._tried(trained))
        name = self.model.served.model
        self.become(plan, None)
        self._served().unload(name)

    def become(self, plan: MethodPlan, weights: AdapterWeights | None) -> None:
        """See `CoordinatorLlm`. Raises: ParameterError: the server does not do what they say."""
        if weights is None:
            self._weights, self._now = None, None
            return
        base, trained = self._opened(), self._trained_here(plan)
        served, rows = self._served(), _known_rows(base)
        before = self._outputs_before(trained)

        def load() -> str:
            return served.load(trained.lm, weights)

        now = replace(
            base,
            served=replace(
                base.served,
                model=load(),
                identity=f"{base.served.identity}+{weights.sha256}",
                restore=load,
            ),
        )
        load_adapters(trained.lm, weights)
        check_change(before, here=outputs(trained.lm, rows), there=outputs(now, rows))
        self._weights, self._now = weights, now

    def tune(
        self,
        plan: MethodPlan,
        examples: Sequence[RationaleExample],
        replay: Sequence[RationaleExample],
        settings: TuningSettings,
        *,
        progress: Callable[[int, int], None],
    ) -> AdapterWeights:
        """See `CoordinatorLlm`; trained here, then loaded there."""
        trained = self._trained_here(plan)
        load_adapters(trained.lm, self._weights or trained.fresh)
        weights = tune_on_rationales(trained.lm, examples, replay, settings, progress=progress)
        self.become(plan, weights)
        return weights

    def watch(self, progress: Callable[[int, int], None]) -> None:
        """See `CoordinatorLlm`."""
        self._progress = progress

    def _served(self) -> ServedAdapters:
        if self._adapters is None:
            raise ParameterError("llm.adapters is missing, and the study has an [uplink]")
        return ServedAdapters(
            http=self._opened().served.http, folder=self._adapters, base=self._endpoint.model
        )

    def _trained_here(self, plan: MethodPlan) -> _TrainedHere:
        if self._trained is None:
            torch.set_num_threads(self._threads)
            try:
                loaded = load_folder(
                    self._tokenizer,
                    name=str(self._tokenizer),
                    calling=self._calling,
                    placement=self._placement,
                )
            except ParameterError as error:
                raise ParameterError(
                    f"the study has an [uplink], which trains adapters on this machine: {error}; "
                    "llm.tokenizer must then be the whole folder of the served model"
                ) from error
            settings = adapter_settings(transfer_of(plan), loaded, seed=plan.seed)
            lm = attach_adapters(loaded, settings)
            self._trained = _TrainedHere(lm=lm, fresh=adapter_weights(lm))
        return self._trained

    def _outputs_before(self, trained: _TrainedHere) -> OutputsBefore:
        if self._before is None:
            base = self._opened()
            rows = _known_rows(base)
            load_adapters(trained.lm, trained.fresh)
            self._before = OutputsBefore(here=outputs(trained.lm, rows), there=outputs(base, rows))
        return self._before

    def _tried(self, trained: _TrainedHere) -> AdapterWeights:
        """Adapters, drawn from a fixed seed, that change what is said of known texts clearly."""
        rows = _known_rows(self._opened())
        before = self._outputs_before(trained).here
        tensors = parse_adapter_tensors(trained.fresh)
        for scale in _TRIED_SCALES:
            generator = torch.Generator().manual_seed(0)
            weights = weights_of(
                {
                    name: scale * torch.randn(one.shape, generator=generator)
                    if "lora_B" in name
                    else one
                    for name, one in tensors.items()
                }
            )
            load_adapters(trained.lm, weights)
            if change(before, outputs(trained.lm, rows)) >= CLEAR_CHANGE:
                return weights
        raise ParameterError(
            "adapters with the settings of [uplink] hardly change the LLM; raise adapter_layers or "
            "adapter_rank"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _TrainedHere:
    """The served model's weights on this machine, with adapters. fresh: those of no effect."""

    lm: LanguageModel
    fresh: AdapterWeights


def _known_rows(base: EndpointModel) -> list[list[int]]:
    return [base.encode_prompt(text) for text in KNOWN_TEXTS]
