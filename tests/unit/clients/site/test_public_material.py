"""What the coordinator posts for all is kept at the site, for whoever asks after the study."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from finished_study import POOL, plan_of

from lada_clients.net.participant import Participant
from lada_clients.site.public_material import CLUSTERS_FILE, POOL_FILE, read_public_material
from lada_clients.site.results.topics import read_topics
from lada_protocol.kinds import Kind
from lada_protocol.plan import StudyPlan
from lada_secure.allocation.cells import fit_clusters
from lada_secure.canonical import canonical_json
from lada_secure.data.records import pool_bytes
from lada_secure.errors import ParameterError, PeerError
from lada_secure.models.embedding import HashedNgramEmbedder

CLUSTERS = fit_clusters(HashedNgramEmbedder().embed([one.question for one in POOL]), 2, 0)
POSTED = {Kind.POOL: pool_bytes(POOL), Kind.CLUSTERS: canonical_json(CLUSTERS.to_json())}


def reader(folder: Path, plan: StudyPlan) -> Participant:
    """A party to whose board both were posted."""
    stand_in = SimpleNamespace(
        plan=plan,
        roster=SimpleNamespace(coordinator=SimpleNamespace(id="coordinator")),
        index=SimpleNamespace(find=lambda kind, sender: kind),
        payload=POSTED.__getitem__,
        open_folder=lambda: folder,
    )
    return cast(Participant, stand_in)


def test_pool_and_topics_are_there_after_the_study(tmp_path: Path) -> None:
    plan = plan_of("study-1", CLUSTERS)
    assert read_topics(tmp_path, plan) is None
    read_public_material(reader(tmp_path, plan))
    topics = read_topics(tmp_path, plan)
    assert topics is not None
    # Each topic is shown by a question of its own.
    for one in topics.names:
        assert topics.of([one.example]) == [one.topic]
    assert (tmp_path / POOL_FILE).read_bytes() == POSTED[Kind.POOL]


def test_what_the_plan_does_not_name_is_not_kept(tmp_path: Path) -> None:
    plan = plan_of("study-1", CLUSTERS, pool_sha256="0" * 64)
    with pytest.raises(PeerError, match="the pool is not the one in the plan"):
        read_public_material(reader(tmp_path, plan))
    assert not list(tmp_path.iterdir())


def test_topics_that_were_changed_on_disk_are_refused(tmp_path: Path) -> None:
    plan = plan_of("study-1", CLUSTERS)
    read_public_material(reader(tmp_path, plan))
    (tmp_path / CLUSTERS_FILE).write_bytes(POSTED[Kind.CLUSTERS].replace(b"1", b"2", 1))
    with pytest.raises(ParameterError, match=r"clusters\.json: expected the hash"):
        read_topics(tmp_path, plan)
