"""Folders of a mock federation, prepared but not started, for tests that start parts of it."""

import os
import subprocess
from dataclasses import replace

from lada_lab.cache_folder import default_cache_dir
from lada_lab.mock.layout import RunLayout
from lada_lab.mock.preparation import child_environment, free_port, party_children, write_run
from lada_lab.mock.presets import preset_for
from lada_lab.worlds.federation import build_federation
from lada_lab.worlds.named_models import make_model


class PreparedFederation:
    """All settings, identities and data of a small study; parties are started by name."""

    def __init__(self, root, *, rounds=1, seed=7, weights=True, preset=None, data=None):
        self.preset = preset = preset or preset_for("tiny", sites=3, rounds=rounds, seed=seed)
        data = data or build_federation("tiny", sites=3, seed=seed)
        cache = default_cache_dir(os.environ)
        if weights:
            for reference in (*preset.site_models, preset.llm):
                make_model(reference, cache_dir=cache)
        self.environment = child_environment(os.environ)
        self.layout = RunLayout(root=root, site_ids=tuple(data.sites))
        write_run(self.layout, preset, data, port=free_port(0), cache_dir=cache)

    def child(self, party):
        """The command that runs one party."""
        children = party_children(self.layout)
        child = next(one for one in children if one.name == party)
        return replace(child, environment=self.environment)

    def start(self, party):
        """Start one party; its output is captured."""
        return subprocess.Popen(
            self.child(party).arguments,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def edit(self, path, old, new):
        """Replace one thing in a settings file."""
        text = path.read_text()
        assert text.count(old) == 1, f"{old!r} is not once in {path.name}"
        path.write_text(text.replace(old, new))
