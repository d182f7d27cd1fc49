"""The Space as a stranger's machine starts it: the files of its repository, and no other copy of
the package."""

import os
import re
import socket
import subprocess
import sys

import pytest
from hub_fixtures import hub_in
from served import greedy

from hf_evomerge.hub.space import push_space

START = """
import importlib.abc, importlib.machinery, runpy, sys

class Alone(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "hf_evomerge" and (spec := importlib.machinery.PathFinder.find_spec(name, sys.path[:1])) is None:
            raise ImportError("the repository has no hf_evomerge")
        return spec if name == "hf_evomerge" else None

sys.path[0] = sys.argv[1]
sys.meta_path.insert(0, Alone())
runpy.run_path(sys.argv[1] + "/app.py", run_name="__main__")
"""  # noqa: E501


@pytest.fixture
def url(dfs, tmp_path):
    """The address of a Space that was pushed, fetched and started."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    with hub_in(tmp_path) as (hub, api):
        space = tmp_path / "space"
        api.create_repo("local/evolved")
        api.upload_folder(repo_id="local/evolved", folder_path=dfs)
        push_space("local/evolved", "local/evolved", api=api)
        api.snapshot_download("local/evolved", repo_type="space", local_dir=space)
        ours = ("PYTHON", "EVOMERGE", "HF_")
        settings = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        settings |= {
            **hub.environment(home=tmp_path / "home"),
            "GRADIO_SERVER_NAME": "127.0.0.1",
            "GRADIO_SERVER_PORT": port,
            "GRADIO_ANALYTICS_ENABLED": "False",
            "PYTHONUNBUFFERED": "1",
        }
        command = [sys.executable, "-c", START, str(space)]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        with subprocess.Popen(command, cwd=space, env=settings, **streams) as process:
            said = ""
            for line in process.stdout:
                said += line
                if address := re.search(r"http://127\.0\.0\.1:\d+", line):
                    yield address[0]
                    break
            else:
                pytest.fail(said)
            process.terminate()


@pytest.mark.slow
def test_the_repository_is_all_that_a_space_needs(url, dfs):
    """A pushed Space starts from its files alone: it answers without the model's code, judges, and
    writes a recipe."""
    from gradio_client import Client

    client = Client(url, verbose=False)
    about = client.predict(api_name="/about")
    assert (about["model"], about["path"][0][:2]) == ("local/evolved", "0:")
    first, second, *_ = about["examples"]
    answered = client.predict(first["prompt"], "evolved", 64, api_name="/answer")
    assert (answered["text"], answered["right"]) == (greedy(dfs, first["prompt"], 64), True)
    assert client.predict(second["prompt"], "evolved", 64, api_name="/answer")["right"] is False
    path = about["path"][::-1]
    changed = client.predict(first["prompt"], "evolved", 8, None, path, api_name="/answer")
    assert changed["text"] == greedy(dfs, first["prompt"], path=path)
