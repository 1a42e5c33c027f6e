"""The paths that a simulated site was given, and what its models think of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from lada_lab.arms.coordinator import Coordinator
from lada_lab.arms.study import StudySettings
from lada_secure.allocation.agreement import agreeing_rationales, cell_agreement
from lada_secure.allocation.data_valuation import (
    ClusterUsefulness,
    groups_to_value,
    useful_rationales,
)
from lada_secure.allocation.strategies import rationale_screen
from lada_secure.arrays import FloatArray
from lada_secure.data.prompts import answer_of, prompt_of
from lada_secure.models.adapters import AdapterWeights, load_adapters
from lada_secure.models.evaluation import greedy_rationales, rationale_losses
from lada_secure.models.examples import RationaleExample
from lada_secure.models.loading import LanguageModel
from lada_secure.models.reference_model import ContrastedRationale, lead_gains, sampled_responses


@dataclass(slots=True, kw_only=True)
class KnownRationale:
    """A path that a site was given.

    p: exp(-loss) under the present student. own_paths: what the reference model drew by itself.
    gain: of the path under the present guide, None before it was judged.
    """

    cell: int
    path: str
    own_paths: tuple[str, ...] = ()
    p: float = 0.0
    gain: float | None = None


@dataclass(slots=True, kw_only=True)
class PathBook:
    """All paths that one site was given so far, by pool index."""

    coordinator: Coordinator
    settings: StudySettings
    lm: LanguageModel
    seed: int
    known: dict[int, KnownRationale] = field(default_factory=dict)

    def take(self, received: Mapping[int, str]) -> None:
        """Note new paths and the cells that came with them."""
        cells = self.coordinator.view.cells
        for place, path in received.items():
            self.known[place] = KnownRationale(cell=int(cells[place]), path=path)

    def draw_own_paths(self, places: Sequence[int], reference: AdapterWeights) -> None:
        """Let the reference model draw paths of its own, to compare the received ones with."""
        if not places:
            return
        load_adapters(self.lm, reference)
        drawn = sampled_responses(
            self.lm,
            [self.prompt(place) for place in places],
            count=self.settings.own_paths,
            max_new_tokens=self.settings.max_new_tokens,
            batch_size=self.settings.batch_size,
            seed=self.seed,
        )
        for place, own in zip(places, drawn, strict=True):
            self.known[place].own_paths = own

    def measure(self, student: AdapterWeights) -> dict[int, float]:
        """Losses of all paths under a student, nats per token; their p is kept."""
        load_adapters(self.lm, student)
        losses = rationale_losses(
            self.lm, self.examples(list(self.known)), batch_size=self.settings.batch_size
        )
        for one, loss in zip(self.known.values(), losses, strict=True):
            one.p = float(np.exp(-loss))
        return {place: float(loss) for place, loss in zip(self.known, losses, strict=True)}

    def judge(self, *, reference: AdapterWeights, guide: AdapterWeights) -> None:
        """Measure all paths against the guide as it is now."""
        gains = lead_gains(
            self.lm,
            [
                ContrastedRationale(
                    prompt=self.prompt(place), path=one.path, own_paths=one.own_paths
                )
                for place, one in self.known.items()
            ],
            reference=reference,
            guide=guide,
            batch_size=self.settings.batch_size,
        )
        for one, gain in zip(self.known.values(), gains, strict=True):
            one.gain = float(gain)

    def agreement(self) -> FloatArray | None:
        """How surely each cell's paths agree with the private records; None if none was judged."""
        judged = [(one.gain, one.cell) for one in self.known.values() if one.gain is not None]
        if not judged:
            return None
        return cell_agreement(
            [gain for gain, _ in judged],
            [cell for _, cell in judged],
            cells=self.coordinator.grid.cells,
        )

    def passing(self, *, guided: bool, tried: ClusterUsefulness | None = None) -> list[int]:
        """Pool indices of the paths that pass the screens.

        By p, and if `guided` by what valuations say of their cluster, where there were none by the
        guide.
        """
        paths = list(self.known.values())
        good = rationale_screen([one.p for one in paths], self.settings.screen_low, 1.0)
        if guided:
            agreeing = agreeing_rationales(
                [one.gain or 0.0 for one in paths],
                [one.cell for one in paths],
                cells=self.coordinator.grid.cells,
                least_share=self.settings.least_share,
            )
            if tried is not None:
                agreeing = useful_rationales(
                    tried, self._clusters(), agreeing, least_share=self.settings.least_share
                )
            good &= agreeing
        return [place for place, fine in zip(self.known, good, strict=True) if fine]

    def groups_to_value(self) -> dict[int, list[RationaleExample]]:
        """Paths of every public cluster that has enough of them for a valuation."""
        places = list(self.known)
        groups = groups_to_value(self._clusters(), clusters=self.coordinator.grid.clusters)
        return {
            cluster: self.examples([places[at] for at in found])
            for cluster, found in groups.items()
        }

    def _clusters(self) -> list[int]:
        return [int(self.coordinator.pool_clusters[place]) for place in self.known]

    def prompt(self, place: int) -> str:
        """What a model reads of a pool sample."""
        sample = self.coordinator.data.pool[place]
        return prompt_of(sample.question, sample.choices)

    def examples(self, places: Sequence[int]) -> list[RationaleExample]:
        """Paths as something to learn."""
        return [
            RationaleExample(
                example_id=self.coordinator.data.pool[place].sample_id,
                prompt=self.prompt(place),
                path=self.known[place].path,
                rejected=None,
            )
            for place in places
        ]

    def contrasted(self, places: Sequence[int]) -> list[RationaleExample]:
        """Paths to learn, against what the model as it is now writes, where that is wrong."""
        pool = self.coordinator.data.pool
        examples = self.examples(places)
        own = greedy_rationales(
            self.lm,
            [one.prompt for one in examples],
            batch_size=self.settings.batch_size,
            max_new_tokens=self.settings.max_new_tokens,
        )
        return [
            replace(
                one,
                rejected=text
                if text and answer_of(text, pool[place].choices) != pool[place].answer
                else None,
            )
            for place, one, text in zip(places, examples, own, strict=True)
        ]
