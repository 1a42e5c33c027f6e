"""Real parties whose sites have different SLMs, and weights that change while the study runs."""

import json
import shutil
import time

import pytest
from byte_models import byte_model_folder
from next_studies import NextStudies, set_value

PATIENCE_S = 300.0


@pytest.fixture
def studies(tmp_path):
    """A study of two rounds: site-a has a copy of its own, site-b a model of another family."""
    made = NextStudies(tmp_path / "run")
    made.propose(rounds=2)
    layout = made.layout
    set_value(layout.coordinator.root / "study.toml", "phase_timeout_s", 240.0)
    settings = layout.site("site-a").settings.read_text()
    cache = json.loads(settings.split("cache_dir = ")[1].splitlines()[0])
    shutil.copytree(f"{cache}/tiny-slm-3-7", layout.site("site-a").root / "slm")
    byte_model_folder(layout.site("site-b").root / "slm", "qwen2", positions=1024)
    for site in ("site-a", "site-b"):
        set_value(layout.site(site).settings, "slm", "./slm")
    return made


def other_weights(folder):
    """Swap the weights for others of the same shapes, size and name; the ones before."""
    path = folder / "model.safetensors"
    before = path.read_bytes()
    part = folder / "part"
    # The last tensor's last numbers.
    part.write_bytes(before[:-64] + bytes(64))
    part.replace(path)
    return before


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_weights_that_change_between_rounds_are_refused_and_unchanged_ones_go_on(studies):
    layout, prepared = studies.layout, studies.prepared
    parties = ("coordinator", "auditor", "site-a", "site-b", "site-c")
    running = {party: prepared.start(party) for party in parties}
    try:
        folder = layout.site("site-a").root / "slm"
        until_s = time.monotonic() + PATIENCE_S
        while not list(layout.site("site-a").state.glob("studies/*/adapters-round-0.*")):
            assert time.monotonic() < until_s, "site-a never trained"
            assert running["site-a"].poll() is None, running["site-a"].communicate()[0]
            time.sleep(0.01)
        before = other_weights(folder)
        said, _ = running["site-a"].communicate(timeout=PATIENCE_S)
        assert running["site-a"].returncode == 1, said
        assert "is not the one that this study began with: weights_sha256 was" in said
        assert "Traceback" not in said

        # A restart with the other weights is refused as well, and nothing is reserved for it.
        def reservations():
            done = studies.lada(
                "site", "ledger", "--settings", layout.site("site-a").settings, "--json"
            )
            return json.loads(done.stdout)["reservations"]

        spent = reservations()
        again = prepared.start("site-a")
        said, _ = again.communicate(timeout=PATIENCE_S)
        assert again.returncode == 1, said
        assert "weights_sha256 was" in said
        assert reservations() == spent

        (folder / "model.safetensors").write_bytes(before)
        running["site-a"] = prepared.start("site-a")
        told = {party: one.communicate(timeout=PATIENCE_S)[0] for party, one in running.items()}
        assert {one.returncode for one in running.values()} == {0}, told
    finally:
        for one in running.values():
            one.kill()

    done = studies.lada("audit", "verify", studies.export(1), "--json")
    assert done.returncode == 0, done.stdout
    slms = json.loads(done.stdout)["slms"]
    architectures = {site: slm["architecture"] for site, slm in slms.items()}
    assert architectures == {
        "site-a": "LlamaForCausalLM",
        "site-b": "Qwen2ForCausalLM",
        "site-c": "LlamaForCausalLM",
    }
    assert slms["site-a"]["weights_sha256"] == slms["site-c"]["weights_sha256"]
    assert slms["site-a"]["tokenizer_sha256"] != slms["site-b"]["tokenizer_sha256"]
    text = studies.lada("audit", "verify", studies.export(1)).stdout
    assert f"weights {slms['site-b']['weights_sha256']}" in text
