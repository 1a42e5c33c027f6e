"""How the coordinator's settings name its LLM: a reference, or a table for one behind a server."""

from __future__ import annotations

from pathlib import Path

import pytest

from lada_protocol.settings import parse_settings
from lada_secure.errors import ParameterError
from lada_server.settings import EndpointSettings, ServerSettings
from lada_server.study.coordinator import open_llm
from lada_server.study.local_llm import LocalLlm
from lada_server.study.served_llm import ServedLlm

SERVER_TOML = """
party = "coordinator"
identity = "identity"
roster = "roster.json"
state_dir = "state"
listen = "127.0.0.1:1"
study = "study.toml"
pool = "pool.jsonl"
cache_dir = "cache"
"""


def settings_of(llm: str, folder: Path) -> ServerSettings:
    text = f"{SERVER_TOML}\n{llm}"
    return parse_settings(text.encode(), ServerSettings, where="server.toml").beside(folder)


def test_the_llm_is_a_reference_or_a_table(tmp_path: Path) -> None:
    assert settings_of('llm = "a-model"', tmp_path).llm == "a-model"
    # A path is relative to the file, wherever the command is typed.
    assert settings_of('llm = "models/llm"', tmp_path).llm == str(tmp_path / "models/llm")
    assert settings_of('llm = "/models/llm"', tmp_path).llm == "/models/llm"
    (tmp_path / "key").write_text("sk-1")
    settings = settings_of(
        'llm = { endpoint = "https://host/v1", model = "m", tokenizer = "tok", key_file = "key" }',
        tmp_path,
    )
    assert isinstance(settings.llm, EndpointSettings)
    assert settings.llm.tokenizer == tmp_path / "tok"
    assert settings.llm.key_file == tmp_path / "key"
    assert isinstance(open_llm(settings), ServedLlm)
    assert isinstance(open_llm(settings_of('llm = "a-model"', tmp_path)), LocalLlm)


@pytest.mark.parametrize(
    ("llm", "words"),
    [
        ("llm = 7", r"llm\.endpoint: "),
        (
            'llm = { endpoint = "https://h/v1", model = "m" }',
            r"llm\.endpoint\.tokenizer' is missing",
        ),
        (
            'llm = { endpoint = "https://h/v1", model = "m", tokenizer = "t", seed = 1 }',
            "unknown key 'llm.endpoint.seed'",
        ),
        (
            'llm = { endpoint = "https://h/v1", model = "m", tokenizer = "t", concurrency = 0 }',
            r"llm\.endpoint\.concurrency",
        ),
    ],
)
def test_a_table_that_is_none_is_named(llm: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=words):
        settings_of(llm, tmp_path)


def test_a_missing_key_or_a_wrong_url_is_found_before_anything_is_loaded(tmp_path: Path) -> None:
    table = 'llm = {{ endpoint = "{}", model = "m", tokenizer = "t", key_file = "no" }}'
    with pytest.raises(ParameterError, match="key_file"):
        open_llm(settings_of(table.format("https://host/v1"), tmp_path))
    with pytest.raises(ParameterError, match=r"llm\.endpoint"):
        open_llm(settings_of(table.format("host").replace(', key_file = "no"', ""), tmp_path))
