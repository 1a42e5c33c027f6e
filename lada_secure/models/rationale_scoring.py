"""Joint log-probabilities of whole paths, with gradients, at the least work.

Three savings over calling the model with `labels=`:

* The head (vocabulary x width, often a third of a small model) runs at target positions only, and
  over a few of them at a time (`token_scores`).
* Rows are padded on the right. Under causal attention no position sees what follows it, so no
  attention mask is needed and padding gets a gradient of exactly zero.
* Layers below the first trainable one never change during training. Their output is computed
  once per row and kept (`FrozenPrefix`), up to a limit in bytes.

The second and third rely on how a model is built, so each is checked on the model at hand against
the model's own plain forward pass, and not used where it differs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional

from lada_secure.errors import ParameterError
from lada_secure.models.checkpointing import layers_of
from lada_secure.models.company import runs_in_float32
from lada_secure.models.examples import TokenRow
from lada_secure.models.token_scores import can_score_tokens, token_scores
from lada_secure.models.transfer import sent
from lada_secure.models.unpacked_rows import unpacked_rows

_PROBE_LENGTHS: Final = (7, 4)
# Relative and absolute, nats. Rounding in float32 stays far below; short types round more.
_PROBE_TOLERANCE: Final = {True: (1e-5, 2e-4), False: (2e-3, 2e-3)}
# What a model does to its logits behind the head; with small logits hardly more than rounding.
_BEHIND_HEAD: Final = ("final_logit_softcapping", "logits_scaling", "logit_scale")


class _ReachedBoundary(Exception):
    """Ends a forward pass at the first trainable layer; carries that layer's input."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


@contextmanager
def _forward_replaced(modules: Sequence[nn.Module], forward: Any) -> Iterator[None]:
    """Give modules another `forward` for a while; it shadows the class's method."""
    before = [module.__dict__.get("forward") for module in modules]
    for module in modules:
        module.__dict__["forward"] = forward
    try:
        yield
    finally:
        for module, old in zip(modules, before, strict=True):
            if old is None:
                del module.__dict__["forward"]
            else:
                module.__dict__["forward"] = old


class FrozenPrefix:
    """Outputs of the layers below the first trainable one, one entry per row.

    An entry is a function of one row and of frozen weights alone: keeping it couples no examples
    and changes no gradient. Rows beyond `cache_bytes` are computed again every time.
    """

    def __init__(self, body: nn.Module, layers: nn.ModuleList, boundary: int, cache_bytes: int):
        self._body = body
        self._layers = layers
        self._boundary = boundary
        self._left_bytes = cache_bytes
        self._kept: dict[tuple[int, ...], Tensor] = {}
        self._returns_tuple = False

    def _capture(self, ids: Tensor) -> Tensor:
        def stop(hidden_states: Tensor, *_: object, **__: object) -> Tensor:
            raise _ReachedBoundary(hidden_states)

        below: nn.Module = self._layers[self._boundary - 1]

        def note(_: nn.Module, __: object, output: object) -> None:
            self._returns_tuple = isinstance(output, tuple)

        handle = below.register_forward_hook(note)
        try:
            with torch.no_grad(), _forward_replaced([self._layers[self._boundary]], stop):
                self._body(input_ids=ids, use_cache=False)
        except _ReachedBoundary as reached:
            return reached.hidden
        finally:
            handle.remove()
        raise ParameterError("the model's forward pass never reached its first trainable layer")

    def states(self, rows: Sequence[TokenRow], ids: Tensor) -> Tensor:
        """(rows, length, width) input of the first trainable layer; zeros where padded."""
        missing = [at for at, row in enumerate(rows) if row.tokens not in self._kept]
        fresh: dict[int, Tensor] = {}
        if missing:
            length = max(len(rows[at].tokens) for at in missing)
            places = sent(torch.tensor(missing), ids.device)
            captured = self._capture(ids.index_select(0, places)[:, :length])
            for place, at in enumerate(missing):
                state = captured[place, : len(rows[at].tokens)].clone()
                size = state.numel() * state.element_size()
                if size <= self._left_bytes and rows[at].tokens not in self._kept:
                    self._kept[rows[at].tokens] = state
                    self._left_bytes -= size
                fresh[at] = state
        known = [
            fresh[at] if at in fresh else self._kept[row.tokens] for at, row in enumerate(rows)
        ]
        hidden = known[0].new_zeros((len(rows), ids.shape[1], known[0].shape[-1]))
        for at, state in enumerate(known):
            hidden[at, : state.shape[0]] = state
        return hidden

    def injected(self, hidden: Tensor) -> AbstractContextManager[None]:
        """While active, the frozen layers do no work and hand `hidden` to the first trainable."""
        result = (hidden,) if self._returns_tuple else hidden

        def skip(*_: object, **__: object) -> object:
            return result

        return _forward_replaced(list(self._layers[: self._boundary]), skip)


@dataclass(slots=True, kw_only=True)
class _Shared:
    """What the scorers of one model share."""

    cache_bytes: int
    prefixes: dict[int, FrozenPrefix] = field(default_factory=dict)
    scorer: RationaleScorer | None = None


_SHARED: Final[WeakKeyDictionary[nn.Module, _Shared]] = WeakKeyDictionary()


@contextmanager
def frozen_outputs_shared(model: nn.Module, *, cache_bytes: int) -> Iterator[None]:
    """While active, all scorers of a model keep outputs of frozen layers in one place.

    For whoever runs a whole study in one process and can spare the room all the time: the same rows
    are trained on, judged and measured. Nothing below the adapters may change meanwhile.
    """
    causal = _causal_of(model)
    _SHARED[causal] = _Shared(cache_bytes=cache_bytes)
    try:
        yield
    finally:
        del _SHARED[causal]


def shared_scorer(model: nn.Module, *, device: torch.device) -> RationaleScorer | None:
    """What scores rows without computing frozen layers again; None where nothing is shared."""
    shared = _SHARED.get(_causal_of(model))
    if shared is None:
        return None
    if shared.scorer is None:
        shared.scorer = RationaleScorer(model, device=device, cache_bytes=shared.cache_bytes)
    return shared.scorer if shared.scorer.skips_frozen_layers else None


def _causal_of(model: nn.Module) -> Any:
    unwrap: Any = getattr(model, "get_base_model", lambda: model)
    return unwrap()


class RationaleScorer:
    """Joint log-probabilities of the targets of token rows under a causal language model."""

    def __init__(
        self,
        model: nn.Module,
        *,
        device: torch.device,
        cache_bytes: int = 0,
    ) -> None:
        """Find body, head and frozen layers, and check each saving on made-up tokens.

        Args: model: a transformers causal language model, with or without peft adapters, whose
        inputs go to `device`; passes run in the type of its weights. cache_bytes: >= 0, room for
        outputs of frozen layers. Where any weight is shorter than float32, or packed, nothing is
        kept: it was computed next to other rows, and in short types that shows.
        """
        self._device = device
        # Whether forward passes run in float32: then a row's company changes rounding alone.
        self.is_float32 = runs_in_float32(model)
        self._causal: Any = _causal_of(model)
        self._body: Any = getattr(self._causal, "base_model", self._causal)
        self._head: Any = self._causal.get_output_embeddings()
        self._prefix: FrozenPrefix | None = None
        self._split = False
        # Whether made-up tokens got a finite probability; if not, the weights are broken.
        self.finite_at_first = True
        with torch.no_grad():
            self._probe(model, cache_bytes if self.is_float32 else 0)

    def _probe(self, model: nn.Module, cache_bytes: int) -> None:
        vocabulary = int(self._causal.config.vocab_size)
        tokens = [(5 + 11 * at) % vocabulary for at in range(max(_PROBE_LENGTHS))]
        rows = [TokenRow(tokens=tuple(tokens[:n]), target_start=2) for n in _PROBE_LENGTHS]
        plain = self(rows)
        self.finite_at_first = bool(torch.isfinite(plain).all())
        plain_head = all(
            getattr(self._causal.config, name, None) in (None, 1, 1.0) for name in _BEHIND_HEAD
        )
        if self._body is not self._causal and self._head is not None and plain_head:
            self._split = True
            self._split = self._agrees(plain, rows)
        prefix = self._frozen_prefix(model, cache_bytes) if cache_bytes > 0 else None
        if prefix is not None:
            self._prefix = prefix
            if not self._agrees(plain, rows) or not self._agrees(plain, rows):
                self._prefix = None

    def _agrees(self, plain: Tensor, rows: Sequence[TokenRow]) -> bool:
        try:
            relative, absolute = _PROBE_TOLERANCE[self.is_float32]
            return torch.allclose(self(rows), plain, rtol=relative, atol=absolute)
        except (ParameterError, TypeError, RuntimeError, AttributeError):
            # A model of another build; the plain forward pass serves it.
            return False

    def _frozen_prefix(self, model: nn.Module, cache_bytes: int) -> FrozenPrefix | None:
        layers = layers_of(model)
        trainable = {one for one in model.parameters() if one.requires_grad}
        in_layers = [trainable.intersection(layer.parameters()) for layer in layers or ()]
        # A trainable embedding or norm outside the layers would make cached outputs stale.
        if layers is None or not trainable or set().union(*in_layers) != trainable:
            return None
        boundary = next(at for at, found in enumerate(in_layers) if found)
        if not boundary:
            return None
        shared = _SHARED.get(self._causal)
        if shared is None:
            return FrozenPrefix(self._body, layers, boundary, cache_bytes)
        if boundary not in shared.prefixes:
            shared.prefixes[boundary] = FrozenPrefix(
                self._body, layers, boundary, shared.cache_bytes
            )
        return shared.prefixes[boundary]

    @property
    def skips_frozen_layers(self) -> bool:
        """Whether outputs of frozen layers are kept."""
        return self._prefix is not None

    def __call__(self, rows: Sequence[TokenRow]) -> Tensor:
        """Joint log-probability of each row's target. Returns: (rows,) float32, nats."""
        ids, flat, targets = self._layout(rows)
        with unpacked_rows():
            scores = self._token_scores(rows, ids, flat, targets)
        flat = flat.to(scores.device)
        # One row's tokens side by side, zeros elsewhere: a sum in a fixed order on every device.
        return scores.new_zeros(ids.numel()).index_copy(0, flat, scores).view(ids.shape).sum(1)

    def _layout(self, rows: Sequence[TokenRow]) -> tuple[Tensor, Tensor, Tensor]:
        """ids (rows, length); and, per scored token, its logit's flat place and the target."""
        length = max(len(row.tokens) for row in rows)
        ids = torch.zeros((len(rows), length), dtype=torch.int64)
        flat: list[int] = []
        targets: list[int] = []
        for at, row in enumerate(rows):
            ids[at, : len(row.tokens)] = torch.tensor(row.tokens)
            # The logits at position p are about token p + 1.
            first, last = row.target_start - 1, len(row.tokens) - 1
            flat.extend(range(at * length + first, at * length + last))
            targets.extend(row.tokens[row.target_start :])
        wanted = sent(torch.tensor([flat, targets], dtype=torch.int64), self._device)
        return sent(ids, self._device), wanted[0], wanted[1]

    def _token_scores(
        self, rows: Sequence[TokenRow], ids: Tensor, flat: Tensor, targets: Tensor
    ) -> Tensor:
        """Log-probability of every scored token, (n,) float32."""
        context: AbstractContextManager[None] = nullcontext()
        if self._prefix is not None:
            context = self._prefix.injected(self._prefix.states(rows, ids))
        with context:
            if not self._split:
                logits: Tensor = self._causal(input_ids=ids, use_cache=False).logits
                flat, targets = flat.to(logits.device), targets.to(logits.device)
                return _scores_of(logits.flatten(0, 1).index_select(0, flat), targets)
            hidden: Tensor = self._body(input_ids=ids, use_cache=False).last_hidden_state
        # A model over several devices ends on another one than it begins.
        hidden = hidden.flatten(0, 1).index_select(0, flat.to(hidden.device))
        targets = targets.to(hidden.device)
        if can_score_tokens(self._head):
            return token_scores(hidden, self._head, targets)
        return _scores_of(self._head(hidden), targets)


def _scores_of(logits: Tensor, targets: Tensor) -> Tensor:
    return -functional.cross_entropy(logits.float(), targets, reduction="none")


def per_token(scores: Tensor, rows: Sequence[TokenRow]) -> Tensor:
    """Divide joint log-probabilities by target lengths. Returns: (rows,) nats a token."""
    lengths = torch.tensor([float(row.target_length) for row in rows])
    return scores / sent(lengths, scores.device)
