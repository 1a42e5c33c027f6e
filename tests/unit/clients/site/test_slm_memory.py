"""A site's SLM that will not fit is refused with numbers before it is loaded or promised."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from architecture_doubles import family_folder
from protocol_world import GUIDE
from site_doubles import POOL, file_of, record, site_plan, site_settings

from lada_clients.site.gates.files import SiteFiles
from lada_clients.site.gates.memory import check_slm_memory, describe_slm_memory, slm_memory
from lada_clients.site.settings import SiteSettings, SlmSettings
from lada_secure.errors import ParameterError
from lada_secure.models import memory

FILES = SiteFiles(
    records=file_of("records.jsonl", [record(at) for at in range(4)]),
    held_out=file_of("held-out.jsonl", [record(9)]),
)


@pytest.fixture
def settings(tmp_path: Path) -> SiteSettings:
    family_folder("Llama", tmp_path / "slm")
    return site_settings(tmp_path, model=SlmSettings(slm=str(tmp_path / "slm"), device="cpu"))


def left(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    """The machine has so many bytes left."""
    monkeypatch.setattr(memory, "free_bytes", lambda _: free)


def test_the_forecast_names_what_stays_and_every_computation(settings: SiteSettings) -> None:
    found = slm_memory(settings, site_plan(), FILES, POOL)
    assert set(found.lasting) >= {"this process", "weights", "adapters and their optimiser"}
    told = " ".join(found.passing)
    for one in ("a private step of", "of the pool", "scores of", "writing"):
        assert one in told
    # Texts of the pool may be longer than records, so they count where they are known.
    assert slm_memory(settings, site_plan(), FILES, ()).largest[1] <= found.largest[1]


@pytest.mark.slow
def test_larger_batches_take_more(settings: SiteSettings) -> None:
    more = settings.model_copy(update={"physical_batch_size": 64})
    few, many = (slm_memory(one, site_plan(), FILES, POOL) for one in (settings, more))
    assert many.largest[1] > 4 * few.largest[1]


def test_what_a_pool_step_repeats_takes_memory_as_what_it_learns(settings: SiteSettings) -> None:
    plain = site_plan(guide=GUIDE)
    repeats = site_plan(guide=GUIDE.model_copy(update={"replay_batch_size": 7}))
    rows = plain.distillation.pool_batch_size * (1 + (plain.distillation.contrastive_weight > 0))
    more = rows + 7 * (1 + (plain.distillation.contrastive_weight > 0))
    for plan, count in ((plain, rows), (repeats, more)):
        told = " ".join(slm_memory(settings, plan, FILES, POOL).passing)
        assert f"a step on {count} x" in told


def test_an_slm_that_does_not_fit_is_refused_before_a_weight_is_read(
    settings: SiteSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr("lada_secure.models.loading.AutoModelForCausalLM.from_pretrained", never)
    left(monkeypatch, 1000)
    with pytest.raises(ParameterError, match=r"the SLM does not fit: it needs about .* Lower phys"):
        check_slm_memory(settings, site_plan(), FILES, POOL)
    assert "so it does not fit" in describe_slm_memory(settings, site_plan(), FILES, POOL)


@pytest.mark.slow
def test_one_that_just_fits_is_a_warning(
    settings: SiteSettings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    needed = slm_memory(settings, site_plan(), FILES, POOL).more
    left(monkeypatch, int(1.1 * needed))
    with caplog.at_level(logging.WARNING):
        check_slm_memory(settings, site_plan(), FILES, POOL)
    assert "memory will be short" in caplog.text
    assert "so it fits" in describe_slm_memory(settings, site_plan(), FILES, POOL)


def test_what_this_machine_cannot_do_is_said_where_the_model_is_shown(
    settings: SiteSettings,
) -> None:
    table = settings.model.model_copy(update={"quantization": "4bit"})
    packed = settings.model_copy(update={"model": table})
    with pytest.raises(ParameterError, match="quantization"):
        check_slm_memory(packed, site_plan(), FILES, POOL)
    told = describe_slm_memory(packed, site_plan(), FILES, POOL)
    assert told.startswith("The SLM cannot be loaded as the settings say: quantization")
