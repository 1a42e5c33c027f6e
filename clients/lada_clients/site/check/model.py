"""A site's checks of its SLM: folder, identity, place, adapters, engine, texts' lengths.

Adapters are attached to the loaded model for the checks of training. They begin at zero, so the
model answers as before.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import torch

from lada_clients.site.check.reading import SiteReading
from lada_clients.site.gates.memory import slm_memory
from lada_clients.site.gates.model import Written, length_faults, size_faults
from lada_clients.site.gates.slm import SiteSlm, known_hashes, slm_faults
from lada_secure.check.running import Found, fault, fine, unneeded, warn
from lada_secure.data.record_faults import refuse
from lada_secure.dpsgd.engine import open_engine
from lada_secure.dpsgd.engine_fused import fused_obstacle
from lada_secure.dpsgd.engine_probe import probe_engine
from lada_secure.errors import ParameterError
from lada_secure.method.mechanisms import adapter_settings
from lada_secure.method.memory import LOWER_AT_A_SITE
from lada_secure.models.adapters import (
    AdapterSettings,
    adapter_targets,
    attach_adapters,
    trainable_parameters,
)
from lada_secure.models.embedding import HASHED_NGRAMS, MINILM
from lada_secure.models.evaluation import ANSWER_TOKENS
from lada_secure.models.loading import LanguageModel, load_language_model
from lada_secure.models.model_checks import (
    PATH_TOKENS,
    ModelChecks,
    embedder_found,
    folder_findings,
    memory_found,
    model_found,
    place_findings,
    weights_memory,
)

if TYPE_CHECKING:
    from lada_secure.data.records import Record

_ENGINE: Final = "auto"


class SiteModelChecks:
    """Checks of one site's SLM. site: what was read so far."""

    def __init__(self, site: SiteReading) -> None:
        self._site = site
        self._adapted: LanguageModel | None = None
        self.of_model: ModelChecks[LanguageModel] = ModelChecks(
            what="the model",
            load=self._load,
            pool=lambda: site.pool,
            asked_in=lambda: None if site.known_plan is None else site.known_plan.answer_form,
            path_tokens=lambda: (
                PATH_TOKENS if site.known_plan is None else site.known_plan.paths.max_new_tokens
            ),
            batch_size=lambda: site.settings.physical_batch_size,
            request=site.request,
        )

    def embedder(self) -> Iterator[Found]:
        """Of the plan; without one, all that a plan may name."""
        plan = self._site.known_plan
        if plan is not None:
            yield embedder_found(plan.embedder)
            return
        try:
            yield embedder_found(HASHED_NGRAMS, MINILM)
        except ParameterError as error:
            yield warn(f"{error}. Until then no study with that embedder can be joined from here")

    def folder(self) -> Iterator[Found]:
        """See `folder_findings`."""
        yield from folder_findings(self._site.settings.slm_folder)

    def identity(self) -> Iterator[Found]:
        """Which model it is, and whether plan and policy allow it; keeps no hash.

        Raises: ModelChanged: this site has accepted the plan with another one.
        """
        site = self._site
        slm = SiteSlm(settings=site.settings, hashes=known_hashes(site.settings))
        model, signed = slm.identity(), site.signed_model
        against = slm_faults(model, site.known_plan, site.policy)
        for one in against:
            yield fault(f"this SLM cannot take part: {one}. Name another one in [model]")
        if signed is not None:
            slm.check(signed)
        if not against:
            yield model_found(model)

    def place(self) -> Iterator[Found]:
        """See `place_findings`."""
        yield from place_findings(self._site.settings.model.placement)

    def memory(self) -> Iterator[Found]:
        """The forecast over the plan's study; of the weights alone where there is none.

        Raises: ParameterError: it will not fit.
        """
        site = self._site
        settings, plan, files = site.settings, site.known_plan, site.known_files
        forecast = weights_memory(settings.slm_folder, settings.model.placement.on_this_machine())
        if plan is not None and files is not None:
            # What of the plan the model cannot do, its own checks tell.
            with contextlib.suppress(ParameterError):
                forecast = slm_memory(settings, plan, files, site.known_pool)
        yield memory_found(forecast, what="the SLM", lower=LOWER_AT_A_SITE)

    def adapters(self) -> Iterator[Found]:
        """Put on the plan's adapters, or the usual ones."""
        plan, lm = self._site.known_plan, self._lm
        settings = AdapterSettings()
        if plan is not None:
            settings = adapter_settings(plan.distillation, lm, seed=plan.seed)
        try:
            targets = adapter_targets(lm.model, settings.target_modules)
        except ParameterError as error:
            # A plan may name any layers; there is none yet.
            yield (warn if plan is None else fault)(f"{error}, in [distillation] adapter_targets")
            return
        self._adapted = attach_adapters(lm, settings)
        trained = sum(one.numel() for one in trainable_parameters(self._adapted.model))
        whose = "the plan's" if plan is not None else "usual"
        layers = settings.last_layers or int(lm.model.config.num_hidden_layers)
        yield fine(
            f"{whose} adapters on {', '.join(targets)} of {layers} layers, rank {settings.rank}: "
            f"{trained:,} parameters to train",
            targets=list(targets),
            layers=layers,
            rank=settings.rank,
            trained_parameters=trained,
        )

    def engine(self) -> Iterator[Found]:
        """Which engine would train, and that its per-unit gradients are the model's.

        Raises: ParameterError: neither can, and why.
        """
        adapted = self._adapted
        if adapted is None:
            yield unneeded("there are no adapters")
            return
        engine = open_engine(adapted.model, _ENGINE)
        engine.close()
        probe_engine(adapted, _ENGINE)
        obstacle = fused_obstacle(adapted.model)
        why = f"; fused cannot: {obstacle}" if obstacle else ""
        yield fine(
            f"{engine.name} trains this model; its gradient of each of two units is autograd's"
            f"{why}",
            engine=engine.name,
        )

    def sizes(self) -> Iterator[Found]:
        """Sizes of the plan against settings and model."""
        plan, settings = self._site.known_plan, self._site.settings
        if plan is None:
            yield unneeded("there is no plan yet")
            return
        against = list(size_faults(plan, self._lm, batch_size=settings.physical_batch_size))
        for one in against:
            yield fault(one)
        if not against:
            yield fine(
                f"{self._lm.max_tokens} tokens hold the plan's paths of "
                f"{plan.paths.max_new_tokens}, a batch of {settings.physical_batch_size} all "
                "records of a unit"
            )

    def lengths(self) -> Iterator[Found]:
        """Every record, held-out record and named pool sample in the model's own tokens.

        Raises: ParameterError: texts that would be cut, by line.
        """
        site, lm = self._site, self._lm
        written = Written(reason=0, sample=0, held_out=self._written_alone)
        if site.known_plan is not None:
            written = Written.by_plan(site.known_plan)
        found = list(length_faults(lm, site.files, site.pool, written))
        if found and site.policy.records.too_long == "cut":
            yield warn(
                f"{len(found)} text(s) are too long for the model and lose their start, as the "
                "policy says (too_long)"
            )
            return
        refuse(found)
        yield fine(
            f'every text fits into {lm.max_tokens} tokens, asked in "{lm.form.name}"',
            max_tokens=lm.max_tokens,
        )

    @property
    def _lm(self) -> LanguageModel:
        return self.of_model.lm

    def _load(self) -> LanguageModel:
        settings, plan = self._site.settings, self._site.known_plan
        torch.set_num_threads(settings.threads)
        loaded = load_language_model(
            str(settings.slm_folder),
            cache_dir=settings.cache_dir,
            calling=settings.model.calling,
            placement=settings.model.placement,
        )
        return loaded if plan is None else loaded.with_form(plan.form)

    def _written_alone(self, record: Record) -> int:
        return ANSWER_TOKENS if self._lm.form.writes_first(record.choices) else 0
