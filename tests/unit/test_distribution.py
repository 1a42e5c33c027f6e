"""What a site installs: the four packages of the product, and nothing of the laboratory."""

import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_product_is_built_without_the_laboratory(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel"]
    subprocess.run([*build, "--directory", str(tmp_path)], cwd=ROOT, check=True, timeout=100)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
        metadata, entries = (
            file.read(next(one for one in names if one.endswith(f".dist-info/{name}"))).decode()
            for name in ("METADATA", "entry_points.txt")
        )
    packages = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert packages == {"lada_secure", "lada_protocol", "lada_clients", "lada_server"}
    assert "lada_lab" not in entries
    needed = Parser().parsestr(metadata).get_all("Requires-Dist")
    assert not [one for one in needed if "lada" in one]
    # Without what is no Python a party cannot begin.
    assert "lada_clients/site/templates/site.toml" in names
