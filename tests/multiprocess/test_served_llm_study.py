"""A whole study whose LLM is behind a server that dies in the middle and comes back."""

import shutil
import time

import pytest
from completions_server import MODEL, CompletionsServer, loaded, serving
from federation import PreparedFederation

from lada_clients.audit.folder import read_evidence
from lada_lab.cache_folder import default_cache_dir
from lada_lab.mock.preparation import child_environment
from lada_protocol.evidence.study import verify_evidence

DEADLINE_S = 400


@pytest.mark.slow
def test_a_study_goes_on_when_its_llm_s_server_was_killed_and_started_again(tmp_path):
    import os

    prepared = PreparedFederation(tmp_path / "run", rounds=1)
    layout = prepared.layout
    environment = child_environment(os.environ)
    folder = tmp_path / "llm"
    shutil.copytree(default_cache_dir(environment) / prepared.preset.llm, folder)
    server = CompletionsServer(loaded(folder), max_model_len=None)
    with serving(server):
        port = int(server.url.split(":")[2].split("/")[0])
        prepared.edit(
            layout.coordinator.settings,
            f'llm = "{prepared.preset.llm}"',
            f'llm = {{ endpoint = "{server.url}", model = "{MODEL}", tokenizer = "{folder}", '
            f'adapters = "{tmp_path / "adapters"}" }}',
        )
        parties = ("coordinator", "auditor", *layout.site_ids)
        processes = {party: prepared.start(party) for party in parties}
        probed = 60
        ends_s = time.monotonic() + DEADLINE_S
        while len(server.requests) < probed:
            assert processes["coordinator"].poll() is None, processes["coordinator"].stdout.read()
            assert time.monotonic() < ends_s
            time.sleep(0.01)
    try:
        time.sleep(3.0)
        # Whoever comes back has forgotten what adapters it had, and what it was asked.
        again = CompletionsServer(loaded(folder), max_model_len=None)
        with serving(again, port=port):
            for party, process in processes.items():
                said, _ = process.communicate(timeout=DEADLINE_S)
                assert process.returncode == 0, (party, said)
    finally:
        for process in processes.values():
            process.kill()
    verdict = verify_evidence(read_evidence(layout.export))
    assert verdict.faults == ()
    assert again.requests
