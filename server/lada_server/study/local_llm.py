"""An LLM whose weights the coordinator itself loads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from lada_secure.data.records import PoolSample
from lada_secure.method.mechanisms import adapter_settings
from lada_secure.method.plan import MethodPlan, transfer_of
from lada_secure.models.adapters import (
    AdapterWeights,
    adapter_targets,
    adapter_weights,
    attach_adapters,
    load_adapters,
)
from lada_secure.models.calling_settings import Calling
from lada_secure.models.examples import RationaleExample
from lada_secure.models.loading import LanguageModel, load_language_model, model_folder
from lada_secure.models.placement import Placement
from lada_secure.models.tuning import TuningSettings, tune_on_rationales
from lada_server.study.llm_memory import check_llm_memory


class LocalLlm:
    """See `CoordinatorLlm`. Loaded once, at first use."""

    def __init__(
        self,
        reference: str,
        *,
        cache_dir: Path,
        threads: int,
        calling: Calling | None = None,
        placement: Placement | None = None,
    ) -> None:
        self._named = reference
        self._calling = calling or Calling()
        self._calling_sha256 = self._calling.sha256
        self._placement = placement or Placement()
        self._cache_dir = cache_dir
        self._threads = threads
        self._model: LanguageModel | None = None
        self._fresh: AdapterWeights | None = None

    @property
    def reference(self) -> str:
        """See `CoordinatorLlm`."""
        # Short types and packed weights say something else; where they lie does not matter.
        form = f"{self._placement.dtype} {self._placement.quantization or ''}".strip()
        return f"{self._named} {self._calling_sha256} {form}"

    @property
    def model(self) -> LanguageModel:
        """See `CoordinatorLlm`."""
        if self._model is None:
            torch.set_num_threads(self._threads)
            self._model = load_language_model(
                self._named,
                cache_dir=self._cache_dir,
                calling=self._calling,
                placement=self._placement,
            )
        return self._model

    def check_memory(self, plan: MethodPlan, pool: Sequence[PoolSample]) -> None:
        """See `CoordinatorLlm`."""
        check_llm_memory(
            plan,
            pool,
            model_folder(self._named, cache_dir=self._cache_dir),
            calling=self._calling,
            placement=self._placement,
        )

    def check_length(self, _tokens: int) -> None:
        """See `CoordinatorLlm`; the model's own configuration says it, and the gate has read it."""

    def check_transfer(self, plan: MethodPlan) -> None:
        """See `CoordinatorLlm`."""
        adapter_targets(self.model.model, transfer_of(plan).adapter_targets)

    def become(self, plan: MethodPlan, weights: AdapterWeights | None) -> None:
        """See `CoordinatorLlm`."""
        fresh = self._with_adapters(plan)
        load_adapters(self.model, fresh if weights is None else weights)

    def tune(
        self,
        plan: MethodPlan,
        examples: Sequence[RationaleExample],
        replay: Sequence[RationaleExample],
        settings: TuningSettings,
        *,
        progress: Callable[[int, int], None],
    ) -> AdapterWeights:
        """See `CoordinatorLlm`."""
        self._with_adapters(plan)
        return tune_on_rationales(self.model, examples, replay, settings, progress=progress)

    def watch(self, progress: Callable[[int, int], None]) -> None:
        """See `CoordinatorLlm`; what is computed here is not counted."""

    def _with_adapters(self, plan: MethodPlan) -> AdapterWeights:
        """Attach adapters where there are none yet. Returns: the ones that change nothing."""
        if self._fresh is None:
            settings = adapter_settings(transfer_of(plan), self.model, seed=plan.seed)
            attach_adapters(self.model, settings)
            self._fresh = adapter_weights(self.model)
        return self._fresh
