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

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
MODELS = {"japanese-model": "a", "maths-model": "b", "their-common-base": "base"}


def test_five_commands(tiny, tmp_path, monkeypatch, caplog):
    """The five commands of the README lead from models on a hub to a merge, its card and its Space
    on the hub."""
    block = README.split("<!-- first hour: begin -->")[1].split("<!-- first hour: end -->")[0]
    commands = [
        shlex.split(line, comments=True)
        for line in re.findall(r"^(hf-evomerge .*)$", block, re.MULTILINE)
    ]
    assert [words[1] for words in commands] == ["init", "search", "search", "eval", "push"]
    monkeypatch.chdir(tmp_path)
    problems = "".join(
        (tiny / f"{split}.jsonl").read_text(encoding="utf-8")
        for split in ("search", "validation", "test")
    )
    (tmp_path / "problems.jsonl").write_text(problems, encoding="utf-8")
    with LocalHub(tmp_path / "hub", user="your-name") as hub:
        api = use_hub(monkeypatch, hub, tmp_path / "client")
        for name, value in hub.environment(home=tmp_path / "client").items():
            monkeypatch.setenv(name, value)  # for the worker process of the search
        for name, folder in MODELS.items():
            api.create_repo(f"your-name/{name}")
            api.upload_folder(repo_id=f"your-name/{name}", folder_path=tiny / folder)
        said = []
        for words in commands:
            if words[1] == "push":
                done = CliRunner().invoke(cli.app, [*words[1:], "--dry-run"])
                assert 'push with --about "...one sentence"' in done.stdout
                planned = re.search(
                    "^Space your-name/your-merge: ([0-9]+) files", done.stdout, re.MULTILINE
                )
                assert "app.py, drawing.py" in done.stdout
                words = [*words, "--about", "Repeats what it reads."]
            done = CliRunner().invoke(cli.app, words[1:])
            assert done.exit_code == 0, (words, done.output, done.exception)
            said.append(done.stdout)
        merge = "your-name/your-merge"
        steps = block.strip().removesuffix("```").split(" --data problems.jsonl\n")[1].lower()
        assert said[0].lower().endswith(f"wrote search.yaml; read it, then:\n{steps}"), (
            "as the README has them"
        )
        assert "gradient steps on 3 of 7 examples" in said[1]
        assert "evolved PS *" in said[2]
        assert said[3].count("answered:") == 3
        then = re.search("^next: +(.*)\\Z", said[2].strip(), re.MULTILINE | re.DOTALL)
        assert shlex.split(then[1])[:3] == commands[3][:3]  # no answer is right: no word of push
        assert f"{hub.endpoint}/{merge}" in said[4]
        again = CliRunner().invoke(cli.app, [*commands[4][1:], "--about", "Repeats.", "--json"])
        told = json.loads(again.stdout)
        assert (told["changed"], told["url"] in said[4]) == (True, True)
        about = ["--about", "Repeats what it reads."]
        back = CliRunner().invoke(cli.app, [*commands[4][1:], *about])
        assert back.exit_code == 0
        assert "what the model is for" not in caplog.text + done.output
        study = json.loads(
            Path(api.hf_hub_download(merge, "study.json")).read_text(encoding="utf-8")
        )
        assert study["examples"]
        assert study["settings"]["about"] == "Repeats what it reads."
        ids = AutoTokenizer.from_pretrained(merge)("w1 w2", return_tensors="pt").input_ids
        assert AutoModelForCausalLM.from_pretrained(merge)(ids).logits.isfinite().all()
        card = Path(api.hf_hub_download(merge, "README.md")).read_text(encoding="utf-8")
        assert "japanese-model" in card
        assert f"huggingface.co/spaces/{merge}" in card
        assert "\nRepeats what it reads.\n" in card
        assert api.space_info(merge).sdk == "gradio"
        assert int(planned[1]) == len(
            {*api.list_repo_files(merge, repo_type="space")} - {".gitattributes"}
        )
