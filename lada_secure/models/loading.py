"""Causal language models with their tokenizers, loaded from folders to where they belong."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from lada_secure.arrays import FloatArray
from lada_secure.errors import ParameterError
from lada_secure.models.allocator import give_blocks_back
from lada_secure.models.calling import open_style
from lada_secure.models.calling_settings import Calling
from lada_secure.models.checkpointing import checkpointed_layers
from lada_secure.models.folder import check_folder, read_json, shown_names
from lada_secure.models.forward import (
    OptionTokens,
    Tokens,
    continuations,
    option_scores,
    target_scores,
)
from lada_secure.models.placement import ON_CPU, Placement
from lada_secure.models.text_model import ModelTexts, TextModel
from lada_secure.models.tokenizer import largest_token, load_tokenizer, spelled_controls
from lada_secure.models.weight_checks import check_complete, check_finite, stored_tensors

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageModel(TextModel):
    """A causal language model whose weights are on this machine.

    `pads`: whether rows of one batch may be padded on the left and share a cache, as attention
    allows. A model that carries a state from token to token (Mamba, short convolutions) would carry
    the padding on as well.
    placement: where the weights lie and in which form, with its device chosen.
    """

    model: PreTrainedModel
    pads: bool = True
    placement: Placement = ON_CPU

    @property
    def device(self) -> torch.device:
        """Where tokens go; with a `device_map`, the device of the first layer."""
        found: torch.device = self.model.device
        return found

    def target_log_probabilities(
        self, rows: Sequence[Tokens], targets: Sequence[int], *, batch_size: int
    ) -> FloatArray:
        """See `TextModel`."""
        pad = self.end_token if self.pads else None
        return target_scores(self.model, rows, targets, pad=pad, batch_size=batch_size)

    def option_log_probabilities(
        self, asked: Sequence[OptionTokens], *, batch_size: int
    ) -> list[FloatArray]:
        """See `TextModel`; a prompt is read once where the model can share a cache."""
        if not self.pads:
            return self.whole_option_log_probabilities(asked, batch_size=batch_size)
        return option_scores(
            self.model,
            asked,
            pad=self.end_token,
            max_tokens=self.max_tokens,
            batch_size=batch_size,
        )

    def continuations(
        self,
        prompts: Sequence[Tokens],
        *,
        batch_size: int,
        max_new_tokens: int,
        temperature: float,
        top_p: float,
        seed: int,
    ) -> list[str]:
        """See `TextModel`."""
        written = continuations(
            self.model,
            prompts,
            ends=self.end_tokens,
            pads=self.pads,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
        )
        return [
            self.continuation(prompt, own) for prompt, own in zip(prompts, written, strict=True)
        ]


def load_language_model(
    reference: str,
    *,
    cache_dir: Path,
    calling: Calling | None = None,
    placement: Placement | None = None,
) -> LanguageModel:
    """Load a model by its reference: the path of a folder, or its name in the cache folder.

    Args: reference: of a folder in the transformers format with safetensors. calling: how to call
        it; None is "plain". placement: where to load it to; None is the first device, float32.
    Raises: ParameterError: there is no such folder, it does not hold a readable model, or this
        machine cannot place it so.
    """
    folder = model_folder(reference, cache_dir=cache_dir)
    return load_folder(folder, name=reference, calling=calling, placement=placement)


def model_folder(reference: str, *, cache_dir: Path) -> Path:
    """Where a reference points to. Raises: ParameterError: there is no such folder."""
    for folder in (Path(reference), cache_dir / reference):
        if (folder / "config.json").is_file():
            return folder
    raise ParameterError(
        f"model reference {reference!r}: expected a folder with config.json and "
        f"model.safetensors, by its path or by its name in {cache_dir}; copy the model there"
    )


def load_folder(
    folder: Path,
    *,
    name: str,
    calling: Calling | None = None,
    placement: Placement | None = None,
) -> LanguageModel:
    """Load a model folder in the transformers format; only safetensors, never pickled weights.

    Args: placement: None is the first device, float32.
    Raises: ParameterError: the folder does not hold a readable model, or not the one that its
        configuration says, see also `lada_secure.models.folder`; or this machine cannot place it
        so.
    """
    check_folder(folder)
    where = (placement or Placement()).on_this_machine()
    if where.quantization is not None:
        # Once they are packed, nothing tells NaN from a number any more.
        check_finite(folder, stored_tensors(folder))
    try:
        with quiet_transformers():
            tokenizer = load_tokenizer(folder)
            check_architecture(folder)
            model, told = AutoModelForCausalLM.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **_load_options(where),
            )
    except ParameterError:
        raise
    except torch.OutOfMemoryError as error:
        raise ParameterError(
            f"{folder}: the weights do not fit on {where.device} in {where.dtype}; use a device "
            'with more memory free, dtype = "bfloat16", quantization or a smaller model'
        ) from error
    except Exception as error:
        raise unreadable(folder, error) from error
    check_complete(folder, told)
    check_finite(folder, model.named_parameters())
    _check_on_devices(folder, model, where)
    if where.gradient_checkpointing:
        checkpointed_layers(model)
        if where.device == "cpu":
            give_blocks_back()
    return wrap_model(model, tokenizer, name=name, calling=calling, placement=where)


def _check_on_devices(folder: Path, model: PreTrainedModel, where: Placement) -> None:
    """Refuse a model of which accelerate has left a part off the devices.

    Raises: ParameterError: names the parts.
    """
    places: Mapping[str, object] = getattr(model, "hf_device_map", None) or {}
    off = [name for name, place in places.items() if str(place) in ("cpu", "disk")]
    if where.device != "cpu" and off:
        raise ParameterError(
            f"{folder}: {len(off)} parts of the model do not fit on the CUDA devices: "
            f"{shown_names(off)}; use more devices, quantization or a smaller model"
        )


def _load_options(where: Placement) -> dict[str, Any]:
    """What transformers is told; it loads to a GPU without the whole model in the CPU's memory."""
    options: dict[str, Any] = {"dtype": where.torch_dtype}
    if where.device_map is not None:
        options["device_map"] = where.device_map
    elif where.device != "cpu":
        options["device_map"] = {"": where.torch_device}
    if where.quantization == "4bit":
        # Dettmers et al. 2023, sections 3 and 4: NF4 and double quantization lose nothing that
        # their tasks could measure.
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=where.torch_dtype,
        )
    elif where.quantization == "8bit":
        options["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
    return options


def check_architecture(folder: Path) -> None:
    """Refuse what transformers would load as another class than the folder names.

    Raises: ParameterError: an architecture that is unknown, not causal, or not the one named, or a
        configuration that transformers cannot read.
    """
    try:
        _check_architecture(folder)
    except ParameterError:
        raise
    except Exception as error:
        # What transformers raises for a value that it did not expect may be anything.
        raise unreadable(folder, error) from error


def _check_architecture(folder: Path) -> None:
    kind, named = (read_json(folder / "config.json").get(key) for key in _ARCHITECTURE_KEYS)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        loads = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    except (ValueError, KeyError):
        loads = None
    if loads is None:
        raise ParameterError(
            f"{folder}: transformers {transformers.__version__} has no causal language model of "
            f"model_type {kind!r}; use a model of a known family, or a newer transformers"
        )
    known = {one.__name__ for one in (loads if isinstance(loads, tuple) else (loads,))}
    if named and not known.intersection(named):
        raise ParameterError(
            f"{folder}: config.json names the architecture {', '.join(map(str, named))}, but "
            f"model_type {kind!r} is {', '.join(sorted(known))}; copy the model's own config.json"
        )


_ARCHITECTURE_KEYS: Final = ("model_type", "architectures")


def wrap_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    name: str,
    calling: Calling | None = None,
    placement: Placement | None = None,
) -> LanguageModel:
    """Put a model into evaluation mode, let it generate as it is told, and set how it is called.

    What a folder says of generation is left out: with a repetition penalty or sampling in it,
    greedy paths would not be greedy.

    Args: placement: where it is; None for a float32 model, wherever it lies.
    Raises: ParameterError: no end token, a template that cannot be used or leaves no room, or a
        tokenizer of another model.
    """
    model.eval()
    model.generation_config = GenerationConfig()
    texts = _texts(tokenizer, model.config, name=name, calling=calling or Calling())
    found = LanguageModel(
        **{one.name: getattr(texts, one.name) for one in fields(texts)},
        model=model,
        pads=not carries_state(model),
        placement=placement or Placement(device=str(model.device)),
    )
    rows = int(model.get_input_embeddings().weight.shape[0])
    largest = largest_token(
        tokenizer, used=(*found.style.head, *found.style.tail, *found.end_tokens)
    )
    if largest >= rows:
        raise ParameterError(
            f"{name}: its tokenizer has a token {largest}, the model has {rows} rows of "
            "embeddings; tokenizer and weights are of different models"
        )
    LOG.info(
        "%s: style %s, %d tokens around a question, at most %d in all",
        name,
        found.style.name,
        found.style.tokens,
        found.max_tokens,
    )
    return found


def open_texts(folder: Path, *, name: str, calling: Calling | None = None) -> ModelTexts:
    """How the model of a folder reads and writes texts; loads no weight.

    Raises: ParameterError: see `load_folder`, as far as weights have no part in it.
    """
    check_folder(folder)
    try:
        with quiet_transformers():
            tokenizer = load_tokenizer(folder)
            check_architecture(folder)
            config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except ParameterError:
        raise
    except Exception as error:
        raise unreadable(folder, error) from error
    return _texts(tokenizer, config, name=name, calling=calling or Calling())


def _texts(
    tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, *, name: str, calling: Calling
) -> ModelTexts:
    if tokenizer.eos_token_id is None:
        raise ParameterError(f"{name}: the tokenizer has no end token; paths could not end")
    # Families without position embeddings (ALiBi) have no limit of their own.
    text_config = config.get_text_config()
    positions = getattr(text_config, "max_position_embeddings", None) or calling.max_tokens
    found = ModelTexts(
        tokenizer=tokenizer,
        name=name,
        max_tokens=min(int(positions), calling.max_tokens),
        style=open_style(calling, tokenizer, name=name),
        spelled=spelled_controls(tokenizer),
    )
    if 2 * found.style.tokens > found.max_tokens:
        raise ParameterError(
            f"{name}: its template alone takes {found.style.tokens} of {found.max_tokens} tokens; "
            "use a shorter one, or raise max_tokens"
        )
    return found


def unreadable(folder: Path, error: Exception) -> ParameterError:
    """What a foreign reader of a model folder has said, as one sentence of ours."""
    # The readers of weights and tokenizers raise whatever they like, plain Exception included.
    first = (str(error).splitlines() or [type(error).__name__])[0]
    return ParameterError(
        f"{folder}: not a readable model folder ({first}); remove it where it is a cache, it will "
        "be made again"
    )


def carries_state(model: PreTrainedModel) -> bool:
    """Whether a model hands a state from token to token, which padding would change."""
    layers = getattr(model.config.get_text_config(), "layer_types", None) or ()
    # "linear_attention" is a recurrence, whatever its name says.
    others = [one for one in layers if not one.endswith("attention") or one.startswith("linear")]
    return bool(getattr(model, "_is_stateful", False)) or bool(others)


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' progress bars and load reports off the terminal for a while."""
    logging_of = transformers.utils.logging
    shown, verbosity = logging_of.is_progress_bar_enabled(), logging_of.get_verbosity()
    logging_of.disable_progress_bar()
    logging_of.set_verbosity_error()
    try:
        yield
    finally:
        logging_of.set_verbosity(verbosity)
        if shown:
            logging_of.enable_progress_bar()
