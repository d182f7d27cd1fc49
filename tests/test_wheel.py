"""The built wheel, in a folder that has nothing of the repository: it publishes, loads, rebuilds
and makes a Space."""

import json
import os
import re
import shlex
import subprocess
import sys
from email.parser import BytesParser
from email.policy import default
from pathlib import Path
from zipfile import ZipFile

import pytest
from local_hub import LocalHub

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
MAIN = "from hf_evomerge.cli import app; app()"
LOAD = """
import json
from transformers import AutoModelForCausalLM
import hf_evomerge
model = AutoModelForCausalLM.from_pretrained("local/merge")
print(json.dumps([type(model).__module__, hf_evomerge.__file__]))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from the repository."""
    pytest.importorskip("hatchling", reason="hatchling builds the wheel: pip install hatchling")
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    release = {
        "GITHUB_SERVER_URL": "https://git.example",
        "GITHUB_REPOSITORY": "some/where",
        "GITHUB_REF_NAME": "v9",
    }
    subprocess.run(
        command, cwd=ROOT, check=True, capture_output=True, env={**os.environ, **release}
    )
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder with the wheel's files and nothing else; what it depends on comes from this
    environment."""
    folder = tmp_path_factory.mktemp("site")
    with ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture
def run(installed, tmp_path):
    """Runs Python with the wheel in an empty folder, against a hub of its own."""
    with LocalHub(tmp_path / "hub") as hub:
        environment = {**os.environ, **hub.environment(), "PYTHONPATH": str(installed)}

        def program(code, line=""):
            command = [sys.executable, "-P", "-c", code, *shlex.split(line)]
            done = subprocess.run(
                command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300
            )
            assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
            return done.stdout

        yield program


def test_the_wheel_carries_what_it_needs(wheel):
    """The card's template, the Space's files, the schemas and the demo's models are in the wheel;
    tests and drafts are not."""
    names = set(ZipFile(wheel).namelist())
    for name in (
        "_bundled/model_cards/model.md.jinja",
        "_bundled/space_app/app.py",
        "_bundled/space_app/requirements.txt",
        "demo/specialists/maths/model.safetensors",
        "py.typed",
        "search/file/search.yaml.jinja",
        "schemas/recipe.schema.json",
        "schemas/search.schema.json",
    ):
        assert f"hf_evomerge/{name}" in names
    examples = {file.name for file in (ROOT / "examples").iterdir() if file.is_file()}
    assert examples == {Path(name).name for name in names if "/_bundled/examples/" in name}
    for name in names:
        assert "__pycache__" not in name
        assert not name.startswith(("tests/", "space_app/"))


def test_what_pypi_shows_leads_somewhere(wheel):
    """A release's README has no link that begins at the repository, and its metadata say where the
    project is."""
    with ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = BytesParser(policy=default).parsebytes(archive.read(name))
    targets = re.findall(r"\]\(([^)]*)\)", metadata.get_payload())
    assert len(targets) > 15
    for target in targets:
        assert target.startswith(("https://", "#"))
        if path := re.fullmatch(r"https://git\.example/some/where/(blob|raw)/v9/(.*)", target):
            assert (ROOT / path[2].partition("#")[0]).exists(), target
            assert (path[1] == "raw") is path[2].endswith((".gif", ".png"))
    urls = dict(url.split(", ") for url in metadata.get_all("Project-URL"))
    assert urls["Homepage"] == "https://git.example/some/where"
    assert urls["Paper"].startswith("https://arxiv.org/")
    assert metadata["Description-Content-Type"].startswith("text/markdown")


def test_the_wheel_publishes_loads_and_rebuilds(run, installed, hybrid_search, tmp_path):
    """From the wheel alone: push with a Space, load without custom code, and the Space's files are
    those of the repository."""
    run(MAIN, "init --example small-ps")
    example = (ROOT / "examples" / "small-ps.yaml").read_bytes()
    assert (tmp_path / "small-ps.yaml").read_bytes() == example
    printed = run(MAIN, f"push {hybrid_search} local/merge --space")
    assert "published http" in printed
    assert "Space: http" in printed
    module, file = json.loads(run(LOAD).splitlines()[-1])
    assert module == "hf_evomerge.modeling.modeling_evo_merged"
    assert Path(file).is_relative_to(installed)
    run(
        "from huggingface_hub import snapshot_download as s; s('local/merge', repo_type='space', "
        "local_dir='space')"
    )
    for app in (ROOT / "space_app").glob("*.py"):
        assert (tmp_path / "space" / app.name).read_bytes() == app.read_bytes()
    assert json.loads((tmp_path / "space" / "space.json").read_text())["model"] == "local/merge"
