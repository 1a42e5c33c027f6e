"""A small server of OpenAI's completions protocol, in this process, over a real small model.

It speaks what vLLM documents (`prompt_logprobs`, token ids, adapters loaded while it runs), or what
llama-cpp-python's server was seen to speak (texts, `echo`, log-probabilities of the next place
where a prompt has no start token). Faults are put in by a function that sees every request first.
"""

from __future__ import annotations

import copy
import json
import shutil
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from peft import PeftModel
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from lada_secure.models import forward
from lada_secure.models.endpoint.probe import KNOWN_TEXTS
from lada_secure.models.loading import LanguageModel, load_folder, quiet_transformers

Speaks = Literal["vllm", "echo_ids", "llama_cpp"]
MODEL = "served-model"
TEXTS = (
    *KNOWN_TEXTS,
    "Which city is the capital of France?\nAnswer: Paris. It lies on the Seine.",
    "Which city is the capital of Italy?\nAnswer: Rome. It lies on the Tiber.",
    "What is 2 + 3?\n2 and 3 make 5.\n5",
    "What is 4 + 4?\n4 and 4 make 8.\n8",
)


def byte_tokenizer(texts: Sequence[str] | None = None) -> PreTrainedTokenizerFast:
    """Byte-level BPE with a few merges, a start token and an end token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<start>", "<end>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts or TEXTS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<start>", eos_token="<end>", pad_token="<end>"
    )


def model_folder(folder: Path, *, seed: int = 0) -> Path:
    """A small Llama that has learned a few texts by heart, and its tokenizer."""
    tokenizer = byte_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        _learn(model, tokenizer)
    with quiet_transformers():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def with_start_token(folder: Path, made: Path) -> Path:
    """A copy of a model folder whose tokenizer begins every text with the start token."""
    shutil.copytree(folder, made)
    file = made / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "add_bos_token": True}))
    return made


def _learn(model: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    rows = [
        torch.tensor([tokenizer(text)["input_ids"] + [tokenizer.eos_token_id]]) for text in TEXTS
    ]
    for step in range(40 * len(rows)):
        row = rows[step % len(rows)]
        model(input_ids=row, labels=row).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@dataclass(frozen=True, slots=True)
class Reply:
    """What goes back: a status, headers, and bytes; whole False promises more than it sends."""

    body: bytes
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    whole: bool = True


Fault = Callable[[str, dict[str, Any]], Reply | None]


@dataclass(slots=True)
class CompletionsServer:
    """What is served, how, and what was asked. fault: sees path and body; None lets it pass."""

    lm: LanguageModel
    speaks: Speaks = "vllm"
    adds_bos: bool = False
    offers_adapters: bool = True
    max_model_len: int | None = 512
    fault: Fault | None = None
    key: str | None = None
    requests: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    adapters: dict[str, Any] = field(default_factory=dict)
    url: str = ""
    change: Callable[[dict[str, Any]], dict[str, Any]] = field(default=lambda reply: reply)
    _lock: Any = field(default_factory=threading.Lock)

    def answer(self, path: str, body: dict[str, Any], key: str | None) -> Reply:
        """One request."""
        self.requests.append((path, body))
        faulty = None if self.fault is None else self.fault(path, body)
        if faulty is not None:
            return faulty
        if self.key is not None and key != f"Bearer {self.key}":
            return _error(401, "Invalid API key")
        if path == "/v1/models":
            return _json({"object": "list", "data": self._cards()})
        if path == "/v1/completions":
            with self._lock:
                return self._complete(body)
        if path == "/v1/load_lora_adapter" and self.offers_adapters:
            return self._load(body)
        if path == "/v1/unload_lora_adapter" and self.offers_adapters:
            known = self.adapters.pop(body["lora_name"], None)
            return _error(404, "not found") if known is None else Reply(b"Success")
        return _error(404, "Not Found")

    def _cards(self) -> list[dict[str, Any]]:
        own = {"id": MODEL, "object": "model", "max_model_len": self.max_model_len}
        return [own, *({"id": name, "parent": MODEL} for name in self.adapters)]

    def _load(self, body: dict[str, Any]) -> Reply:
        name, path = body["lora_name"], body["lora_path"]
        if name in self.adapters:
            return _error(400, f"The lora adapter '{name}' has already been loaded.")
        if not (Path(path) / "adapter_config.json").exists():
            return _error(404, f"No adapter found for {path}")
        base = copy.deepcopy(self.lm.model)
        self.adapters[name] = PeftModel.from_pretrained(base, path).eval()
        return Reply(f"Success: LoRA adapter '{name}' added successfully.".encode())

    def _complete(self, body: dict[str, Any]) -> Reply:
        name, prompt = body["model"], body["prompt"]
        model = self.lm.model if name == MODEL else self.adapters.get(name)
        if model is None:
            return _error(404, f"The model `{name}` does not exist.")
        tokenizer = self.lm.tokenizer
        if self.speaks == "llama_cpp" and not isinstance(prompt, str):
            return _error(422, "Input should be a valid string")
        ids = (
            [int(one) for one in tokenizer(prompt, add_special_tokens=False)["input_ids"]]
            if isinstance(prompt, str)
            else list(prompt)
        )
        wanted = self.speaks == "llama_cpp" or body.get("add_special_tokens", True)
        if self.adds_bos and isinstance(prompt, str) and wanted:
            ids = [int(tokenizer.bos_token_id), *ids]
        if self.max_model_len and len(ids) + body["max_tokens"] > self.max_model_len:
            return _error(400, f"This model's maximum context length is {self.max_model_len}")
        written = forward.continuations(
            model,
            [ids],
            ends=self.lm.end_tokens,
            pads=True,
            batch_size=1,
            max_new_tokens=body["max_tokens"],
            temperature=body.get("temperature", 1.0),
            top_p=body.get("top_p", 1.0),
            seed=body.get("seed", 0),
        )[0]
        choice: dict[str, Any] = {
            "index": 0,
            "text": tokenizer.decode(written, skip_special_tokens=True),
            "finish_reason": "length",
            "logprobs": None,
        }
        whole = [*ids, *written]
        places = _log_probabilities(model, whole)
        if self.speaks == "vllm":
            if "prompt_logprobs" in body:
                choice["prompt_logprobs"] = [
                    None if at == 0 else {str(one): {"logprob": places[at - 1][one], "rank": 1}}
                    for at, one in enumerate(ids)
                ]
            if body.get("return_token_ids"):
                choice |= {"prompt_token_ids": ids, "token_ids": written}
        first = 0 if body.get("echo") and self.speaks != "vllm" else len(ids)
        if body.get("logprobs") is not None:
            choice["logprobs"] = self._listed(whole, places, first)
        reply = {
            "id": "cmpl-1",
            "object": "text_completion",
            "created": 1,
            "model": name,
            "choices": [choice],
            "usage": {"prompt_tokens": len(ids), "completion_tokens": len(written)},
        }
        return _json(self.change(reply))

    def _listed(self, whole: list[int], places: list[list[float]], first: int) -> dict[str, Any]:
        tokenizer = self.lm.tokenizer
        listed = range(first, len(whole))
        shift = 0
        if self.speaks == "llama_cpp":
            bos = tokenizer.bos_token_id
            listed = [at for at in listed if whole[at] != bos]
            # As seen: an echo of a prompt without a start token gives each token the numbers of the
            # place behind it.
            shift = 1 if first == 0 and whole[0] != bos else 0
        special = set(tokenizer.all_special_ids)
        return {
            "tokens": [
                "" if whole[at] in special else tokenizer.decode(whole[at]) for at in listed
            ],
            "token_logprobs": [
                None
                if first == 0 and number == 0
                else places[min(at - 1 + shift, len(places) - 1)][whole[at]]
                for number, at in enumerate(listed)
            ],
            "text_offset": [0 for _ in listed],
            "top_logprobs": None,
        }


def _log_probabilities(model: Any, ids: list[int]) -> list[list[float]]:
    """Of every token of the vocabulary behind each place."""
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([ids])).logits[0]
    found: list[list[float]] = logits.double().log_softmax(-1).tolist()
    return found


def _json(value: object, status: int = 200) -> Reply:
    raw = json.dumps(value).encode()
    return Reply(raw, status, {"Content-Type": "application/json"})


def _error(status: int, message: str) -> Reply:
    return _json({"error": {"message": message, "code": status}}, status)


@contextmanager
def serving(server: CompletionsServer, *, port: int = 0) -> Iterator[CompletionsServer]:
    """Run it on a port of this machine until the end of `with`; its `url` says where."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._reply(server.answer(self.path, {}, self.headers.get("Authorization")))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._reply(server.answer(self.path, body, self.headers.get("Authorization")))

        def _reply(self, reply: Reply) -> None:
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(reply.body) + (0 if reply.whole else 100)))
            self.end_headers()
            self.wfile.write(reply.body)
            if not reply.whole:
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            """Quiet."""

    class Listener(ThreadingHTTPServer):
        daemon_threads = True
        allow_reuse_address = True
        connections: ClassVar[list[socket.socket]] = []

        def get_request(self) -> tuple[socket.socket, Any]:
            connection, where = super().get_request()
            self.connections.append(connection)
            return connection, where

        def handle_error(self, *_: object) -> None:
            """A client that hangs up is no news."""

    listener = Listener(("127.0.0.1", port), Handler)
    server.url = f"http://127.0.0.1:{listener.server_address[1]}/v1"
    thread = threading.Thread(target=listener.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        listener.shutdown()
        listener.server_close()
        for connection in listener.connections:
            # As a killed process leaves them.
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        thread.join()


def loaded(folder: Path) -> LanguageModel:
    """The model of `model_folder`, as the server and a local comparison have it."""
    return load_folder(folder, name="served")
