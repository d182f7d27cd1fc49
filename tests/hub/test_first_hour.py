"""The README's way from two models to a published merge, run as it stands there, against a hub on
loopback."""

import json
import re
import shlex
from pathlib import Path

from hub_fixtures import use_hub
from local_hub import LocalHub
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from hf_evomerge import cli
from hf_evomerge.record import Record

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
MODELS = {"japanese-model": "a", "maths-model": "b", "their-common-base": "base"}


def _run(words):
    done = CliRunner().invoke(cli.app, words[1:])
    assert done.exit_code == 0, (words, done.output, done.exception)
    return done.stdout


def test_five_commands(tiny, tmp_path, monkeypatch, caplog):
    """The five commands of the README lead from models on a hub to a merge, its card and its Space
    on the hub."""
    block = README.split("<!-- first hour: begin -->")[1].split("<!-- first hour: end -->")[0]
    lines = re.findall(r"^(hf-evomerge .*)$", block, re.MULTILINE)
    commands = [shlex.split(line, comments=True) for line in lines]
    assert [words[1] for words in commands] == ["init", "search", "search", "eval", "push"]
    monkeypatch.chdir(tmp_path)
    splits = [(tiny / f"{split}.jsonl").read_text() for split in ("search", "validation", "test")]
    (tmp_path / "problems.jsonl").write_text("".join(splits), encoding="utf-8")
    about = ["--about", "Repeats what it reads."]
    merge = "your-name/your-merge"
    with LocalHub(tmp_path / "hub", user="your-name") as hub:
        api = use_hub(monkeypatch, hub, tmp_path / "client")
        for name, value in hub.environment(home=tmp_path / "client").items():
            monkeypatch.setenv(name, value)  # for the worker process of the search
        for name, folder in MODELS.items():
            api.create_repo(f"your-name/{name}")
            api.upload_folder(repo_id=f"your-name/{name}", folder_path=tiny / folder)
        init, dry, search, asked = map(_run, commands[:-1])
        steps = block.strip().removesuffix("```").split(" --data problems.jsonl\n")[1].lower()
        written = f"wrote search.yaml; read it, then:\n{steps}"
        assert init.lower().endswith(written), "as the README has them"
        assert "gradient steps on 3 of 7 examples" in dry
        assert "evolved PS *" in search
        assert asked.count("answered:") == 3
        then = search.rpartition("next: ")[2]
        assert shlex.split(then)[:3] == commands[3][:3]  # no answer is right: no word of push
        plan = _run([*commands[4], "--dry-run"])
        assert 'push with --about "...one sentence"' in plan
        assert "app.py, drawing.py" in plan
        planned = re.search(f"^Space {merge}: ([0-9]+) files", plan, re.MULTILINE)
        url = f"{hub.endpoint}/{merge}"
        assert url in _run([*commands[4], *about])
        assert "what the model is for" not in caplog.text
        again = json.loads(_run([*commands[4], "--about", "Repeats.", "--json"]))
        assert (again["changed"], again["url"]) == (True, url)
        _run([*commands[4], *about])
        study = Record.load(Path(api.hf_hub_download(merge, "study.json")))
        assert study.examples
        assert study.settings.about == about[1]
        ids = AutoTokenizer.from_pretrained(merge)("w1 w2", return_tensors="pt").input_ids
        assert AutoModelForCausalLM.from_pretrained(merge)(ids).logits.isfinite().all()
        card = Path(api.hf_hub_download(merge, "README.md")).read_text(encoding="utf-8")
        assert "japanese-model" in card
        assert f"huggingface.co/spaces/{merge}" in card
        assert f"\n{about[1]}\n" in card
        space = set(api.list_repo_files(merge, repo_type="space")) - {".gitattributes"}
        assert int(planned[1]) == len(space)
