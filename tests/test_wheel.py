"""The built wheel, in a folder that has nothing of the repository: it publishes, loads, rebuilds and makes a Space."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from zipfile import ZipFile

import pytest

from hf_evomerge.local_hub import LocalHub

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
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the repository."""
    pytest.importorskip("hatchling", reason="hatchling builds the wheel: pip install hatchling")
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's files and nothing else; what it depends on comes from this environment."""
    folder = tmp_path_factory.mktemp("site")
    with ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture
def run(installed: Path, tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Runs Python with the wheel in an empty folder, against a hub of its own."""
    with LocalHub(tmp_path / "hub") as hub:
        environment = {**os.environ, **hub.environment(), "PYTHONPATH": str(installed)}

        def program(code: str, *arguments: str) -> str:
            command = [sys.executable, "-P", "-c", code, *arguments]
            done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
            return done.stdout

        yield program


def test_the_wheel_carries_what_it_needs(wheel: Path) -> None:
    """The card's template, the Space's files and the demo's models are in the wheel; tests and drafts are not."""
    names = set(ZipFile(wheel).namelist())
    for name in ("_bundled/model_cards/model.md.jinja", "_bundled/space_app/app.py", "_bundled/space_app/requirements.txt"):
        assert f"hf_evomerge/{name}" in names
    assert "hf_evomerge/demo/specialists/maths/model.safetensors" in names
    assert "hf_evomerge/py.typed" in names
    assert not [name for name in names if "__pycache__" in name or name.startswith(("tests/", "space_app/"))]


def test_the_wheel_publishes_loads_and_rebuilds(
    run: Callable[..., str], installed: Path, hybrid_search: Path, tmp_path: Path
) -> None:
    """From the wheel alone: push with a Space, load without custom code, and the Space's files are those of the repository."""
    printed = run(MAIN, "push", str(hybrid_search), "local/merge", "--space")
    assert "published http" in printed
    assert "Space: http" in printed
    module, file = json.loads(run(LOAD).splitlines()[-1])
    assert module == "hf_evomerge.modeling.modeling_evo_merged"
    assert Path(file).is_relative_to(installed)
    code = "from huggingface_hub import snapshot_download as s; s('local/merge', repo_type='space', local_dir='space')"
    run(code)
    for app in (ROOT / "space_app").glob("*.py"):
        assert (tmp_path / "space" / app.name).read_bytes() == app.read_bytes()
    assert json.loads((tmp_path / "space" / "space.json").read_text())["model"] == "local/merge"
