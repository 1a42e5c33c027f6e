"""Settings that name another party's folder or identity are refused before anything is written."""

from contextlib import contextmanager

import pytest

from lada_clients.auditor.runner import run_auditor
from lada_clients.site.decisions import show_plan
from lada_clients.site.runner import run_site
from lada_lab.mock.layout import RunLayout
from lada_lab.mock.preparation import free_port, write_run
from lada_lab.mock.scale import dealt_data, scale_preset
from lada_secure.errors import LadaError
from lada_secure.storage.state_folder import held_state_folder
from lada_server.runner import run_server, server_status

RUN = {"coordinator": run_server, "auditor": run_auditor, "site-001": run_site}


@pytest.fixture
def layout(tmp_path):
    """A federation that is set up and was never started."""
    data = dealt_data(3, seed=0)
    layout = RunLayout(root=tmp_path / "run", site_ids=tuple(data.sites))
    write_run(layout, scale_preset(0), data, port=free_port(0), cache_dir=tmp_path / "cache")
    return layout


def edit(path, old, new):
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


@contextmanager
def refused(match):
    with pytest.raises(LadaError, match=match) as error:
        yield
    assert error.value.exit_status == 2


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("party", "other"),
    [
        ("coordinator", "auditor"),
        ("auditor", "coordinator"),
        ("site-001", "site-002"),
        ("site-001", "coordinator"),
    ],
)
def test_the_state_folder_of_another_party_is_refused_and_left_alone(layout, party, other):
    theirs = layout.parties[other].state
    with held_state_folder(theirs, party=other, role=layout.parties[other].role):
        pass
    before = files(theirs)
    settings = layout.parties[party].settings
    edit(settings, 'state_dir = "state"', f'state_dir = "../{other}/state"')
    with refused(f"is the state of {layout.parties[other].role} {other}"):
        RUN[party](settings)
    assert files(theirs) == before


def test_reading_a_plan_with_another_partys_folder_is_refused_too(layout):
    theirs = layout.site("site-002").state
    with held_state_folder(theirs, party="site-002", role="site"):
        pass
    settings = layout.site("site-001").settings
    edit(settings, 'state_dir = "state"', 'state_dir = "../site-002/state"')
    with refused("is the state of site site-002"):
        show_plan(settings)


@pytest.mark.parametrize("party", list(RUN))
def test_a_second_process_of_a_party_is_refused(layout, party):
    folder = layout.parties[party]
    with (
        held_state_folder(folder.state, party=party, role=layout.parties[party].role),
        refused("in use by another process of this party"),
    ):
        RUN[party](folder.settings)


@pytest.mark.parametrize("party", list(RUN))
def test_the_settings_of_another_party_leave_no_mark_on_the_folder(layout, party):
    settings = layout.parties[party].settings
    edit(settings, f'party = "{party}"', 'party = "site-003"')
    with pytest.raises(LadaError, match="site-003"):
        RUN[party](settings)
    assert not (layout.parties[party].state / "owner.json").exists()


@pytest.mark.parametrize("party", list(RUN))
def test_the_settings_file_of_another_role_is_refused(layout, party):
    other = layout.parties["auditor" if party != "auditor" else "coordinator"].settings
    with refused("key"):
        RUN[party](other)


def test_the_status_of_a_board_that_was_never_begun_makes_nothing(layout):
    found = server_status(layout.coordinator.settings)
    assert (found.state, found.running) == ("not started", False)
    assert files(layout.coordinator.state) == {}
