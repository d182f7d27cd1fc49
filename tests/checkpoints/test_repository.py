"""Sources on the Hub: checked before their weights are fetched, checked again when they came, and
used from the cache."""

import json
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from faulty_hub import Fault
from hub_fixtures import Said, use_hub
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars, httpx
from recipes import merge_of
from safetensors.torch import load_file
from sentence import sentence_folder
from tiny_adapters import save_adapter
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner
from words import word_tokenizer

from hf_evomerge.building.build import build_model
from hf_evomerge.checkpoints.repository import Repository
from hf_evomerge.cli import app
from hf_evomerge.errors import SourceError
from hf_evomerge.recipes.recipe import Recipe

NAMES = ("base", "a", "b")
WEIGHTS = "model.safetensors"
Run = Callable[..., Any]


def recipe_text(prefix, **fields):
    """A merge of the tiny family under these names."""
    data = {
        "sources": [{"model": f"{prefix}a"}, {"model": f"{prefix}b"}],
        "base": {"model": f"{prefix}base"},
        "merge": {
            "method": "dare_ties",
            "parameters": [{"weight": 0.9, "density": 0.5}, {"weight": 0.4}],
        },
        **fields,
    }
    return Recipe.model_validate(data).to_yaml()


@pytest.fixture
def family(lfs_api, tiny):
    """The tiny family, published."""
    for name in NAMES:
        publish(lfs_api, tiny / name, f"local/{name}")


def publish(api, folder, repo_id):
    """Upload a folder."""
    api.create_repo(repo_id)
    for file in sorted(
        item for item in folder.iterdir() if item.is_file() and item.name != "README.md"
    ):
        api.upload_file(path_or_fileobj=file, path_in_repo=file.name, repo_id=repo_id)


@pytest.fixture
def run(hub, tmp_path):
    """Runs the command line in this process against the hub, by LFS, from a cache of its own; or
    where none is, or offline."""

    there = hub.endpoint
    token = hub.token

    def go(*words, home="client", endpoint=None, offline=False):
        with pytest.MonkeyPatch.context() as patch:
            use_hub(
                patch, SimpleNamespace(endpoint=endpoint or there, token=token), tmp_path / home
            )
            patch.setattr(constants, "HF_HUB_OFFLINE", offline)
            patch.chdir(tmp_path)
            disable_progress_bars()
            done = CliRunner().invoke(app, words)
            enable_progress_bars()
            assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
            return Said(done.exit_code, done.stdout, done.stderr, "")

    return go


def cached(tmp_path):
    """The weights in the client's cache."""
    return sorted((tmp_path / "client").rglob("*.safetensors"))


def test_a_dry_run_fetches_no_weights(hub, family, run, tmp_path):
    """Everything is checked from small files and headers that are read by range; the cache holds no
    weights afterwards."""
    (tmp_path / "recipe.yaml").write_text(recipe_text("local/"))
    before = len(hub.requests)
    done = run("merge", "recipe.yaml", "--out", "out", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("fine: dare_ties of 2 sources, as ")
    assert cached(tmp_path) == []
    fetched = [
        seen for seen in hub.requests[before:] if seen.method == "GET" and WEIGHTS in seen.target
    ]
    assert fetched
    assert all("range" in {name.lower() for name in seen.headers} for seen in fetched)


def test_weights_are_fetched_checked_and_kept(hub, family, run, tiny, tmp_path):
    """A build from the Hub has the bits of a build from folders, and works again from the cache
    when the Hub is gone."""
    (tmp_path / "recipe.yaml").write_text(recipe_text("local/"))
    done = run("merge", "recipe.yaml", "--out", "out")
    assert done.returncode == 0, done.stderr
    expected = build_model(Recipe.from_yaml(recipe_text(f"{tiny}/")), tmp_path / "folders")
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == (expected / WEIGHTS).read_bytes()
    for name in NAMES:
        assert any(
            file.read_bytes() == (tiny / name / WEIGHTS).read_bytes() for file in cached(tmp_path)
        )
    hub.stop()
    for offline in (False, True):
        again = run(
            "merge",
            "recipe.yaml",
            "--out",
            f"again-{offline}",
            offline=offline,
            endpoint="http://127.0.0.1:9",
        )
        assert again.returncode == 0, again.stderr
        assert (tmp_path / f"again-{offline}" / WEIGHTS).read_bytes() == (
            expected / WEIGHTS
        ).read_bytes()
    hub.start()


def test_sources_that_do_not_fit_cost_no_download(lfs_api, family, run, tmp_path):
    """Sources of other shapes are refused, with both sides, before any weights are fetched."""
    sizes = {"vocab_size": 26, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2}
    LlamaForCausalLM(
        LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=1)
    ).save_pretrained(tmp_path / "wide")
    publish(lfs_api, tmp_path / "wide", "local/wide")
    sources = [{"model": "local/a"}, {"model": "local/wide"}]
    (tmp_path / "recipe.yaml").write_text(recipe_text("local/", sources=sources))
    done = run("merge", "recipe.yaml", "--out", "out")
    assert done.returncode == 1
    assert re.search(
        r"lm_head.weight: shape \[26, 16\] in local/a@\w{12}, \[26, 32\] in local/wide@\w{12};",
        done.stderr,
    )
    assert len(done.stderr.splitlines()) == 1
    assert cached(tmp_path) == []


def test_a_damaged_download_is_refused_and_made_good(hub, family, run, tiny, tmp_path):
    """A byte that changed on the way is noticed, the file leaves the cache, and the next run
    fetches it again."""
    (tmp_path / "recipe.yaml").write_text(recipe_text("local/"))
    size = (tiny / "a" / WEIGHTS).stat().st_size
    hub.faults.add(
        Fault("GET /content/models/local/a/", "corrupt", times=None, at=size - 3)
    )  # the header stays as it is
    done = run("merge", "recipe.yaml", "--out", "out")
    assert done.returncode == 1
    assert done.stderr.startswith(
        "error: local/a: model.safetensors: what was downloaded has sha256 "
    ), done.stderr
    assert done.stderr.endswith("; it was removed from the cache, run the command again\n")
    assert cached(tmp_path) == []
    hub.faults.clear()
    good = run("merge", "recipe.yaml", "--out", "out")
    assert good.returncode == 0, good.stderr
    expected = build_model(Recipe.from_yaml(recipe_text(f"{tiny}/")), tmp_path / "folders")
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == (expected / WEIGHTS).read_bytes()


def test_a_gated_model_says_where_to_ask(monkeypatch):
    """A model that its authors have not opened is told apart from one that is not there."""
    response = httpx.Response(403, request=httpx.Request("GET", "https://hub"))
    refused = GatedRepoError(
        "403 Client Error. (Request ID: 1) Access to model x is restricted", response=response
    )
    monkeypatch.setattr("huggingface_hub.snapshot_download", Mock(side_effect=refused))
    with pytest.raises(
        SourceError, match=r"^you/x: gated; ask for access on its page on the Hub, and log in"
    ):
        Repository("you/x")


@pytest.mark.parametrize("call", ["GET /api/models/local/a", "GET .*model.safetensors"])
def test_a_hub_that_asks_to_wait_is_waited_for(call, hub, family, run, waits):
    """Whether it refuses the list of files or a header, it is asked again when it says so."""
    fault = hub.faults.add(
        Fault(call, "status", times=2, status=429, headers={"Retry-After": "7"}, body="later")
    )
    done = run("inspect", "local/a", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"].startswith("local/a@")
    assert fault.hits == 2
    assert set(waits) <= {7.0}
    if "api" in call:  # the client itself repeats the others
        assert done.stderr.startswith("local/a: the Hub answers 429; attempt 2 in 7 s\n")


def test_what_cannot_be_had_is_one_line(hub, lfs_api, run, waits, tmp_path):
    """A repository that is not there, one without safetensors, and a Hub that is gone are told in
    one line each."""
    lfs_api.create_repo("local/empty")
    lfs_api.upload_file(
        path_or_fileobj=b'{"model_type": "llama"}',
        path_in_repo="config.json",
        repo_id="local/empty",
    )
    nowhere = f"no folder in {tmp_path}, and no such model on the Hub, or it is private; "
    cases = {"local/nowhere": nowhere, "local/empty": "no .safetensors file"}
    for name, message in cases.items():
        (tmp_path / "recipe.yaml").write_text(
            f"sources: [{{model: {name}}}]\nmerge: {{method: linear}}\n"
        )
        done = run("merge", "recipe.yaml", "--out", "out", "--dry-run")
        assert done.returncode == 1
        assert done.stderr.startswith(f"error: {name}: {message}"), done.stderr
        assert len(done.stderr.splitlines()) == 1
    for status, body, message in (
        (429, "later", "local/empty: later (11 attempts)"),
        (200, "<html>log in</html>", "local/empty: "),
    ):
        hub.faults.add(Fault("", "status", times=None, status=status, body=body))
        done = run("merge", "recipe.yaml", "--out", "out", "--dry-run", home="another")
        hub.faults.clear()
        lines = [line for line in done.stderr.splitlines() if "; attempt " not in line]
        assert lines[0].startswith(f"error: {message}"), done.stderr
        assert len(lines) == 1
    hub.stop()
    done = run("merge", "recipe.yaml", "--out", "out", "--dry-run", home="other")
    hub.start()
    assert re.match(
        (
            r"error: local/empty: no folder in \S+, not in the Hub cache, and the Hub cannot be "
            r"reached"
        ),
        done.stderr,
    )


def test_adapters_are_fetched_too(lfs_api, family, run, tiny, tmp_path):
    """A model and its adapter may both be on the Hub; a dry run fetches neither's weights, a merged
    adapter not the base's.

    An adapter on the Hub names no folder of this machine as its base.
    """
    save_adapter(tiny / "a", tmp_path / "lora", 0, target_modules=["q_proj"])
    publish(lfs_api, tmp_path / "lora", "local/lora")
    (tmp_path / "recipe.yaml").write_text(
        "sources: [{model: local/a, adapter: local/lora}]\nmerge: {method: linear}\n"
    )
    checked = run("merge", "recipe.yaml", "--out", "out", "--dry-run")
    assert checked.returncode == 0, checked.stderr
    assert cached(tmp_path) == []
    done = run("merge", "recipe.yaml", "--out", "adapter")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    assert [file.name for file in cached(tmp_path)] == ["adapter_model.safetensors"]
    (tmp_path / "recipe.yaml").write_text(
        "sources: [{model: local/lora}]\nmerge: {method: linear}\n"
    )
    refused = run("merge", "recipe.yaml", "--out", "alone")
    line = (
        "local/lora: a LoRA adapter that names no base on the Hub; write {model: ITS BASE, "
        "adapter: local/lora}"
    )
    assert line in refused.stderr
    (tmp_path / "recipe.yaml").write_text(
        "sources: [{model: local/a, adapter: local/lora}]\nmerge: {method: linear}\n"
    )
    done = run("merge", "recipe.yaml", "--out", "out", "--whole")
    assert done.returncode == 0, done.stderr
    merged = load_file(tmp_path / "out" / WEIGHTS)
    plain = load_file(tiny / "a" / WEIGHTS)
    changed = {name for name in plain if not torch.equal(plain[name], merged[name])}
    assert changed == {f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 1)}


def test_modules_after_an_encoder_are_fetched(lfs_api, tmp_path):
    """The weights of a Dense layer are fetched with the small files, and merged as those of a
    folder are."""
    tokenizer = word_tokenizer(["<pad>", "<bos>", "<eos>", "<unk>", "one"])
    for seed, name in enumerate("ab"):
        sentence_folder(tmp_path / name, tokenizer, seed)
        lfs_api.create_repo(f"local/{name}")
        lfs_api.upload_folder(folder_path=tmp_path / name, repo_id=f"local/{name}")
    places = {"here": str(tmp_path), "there": "local"}
    here = [build_model(merge_of(f"{p}/a", f"{p}/b"), tmp_path / out) for out, p in places.items()]
    for file in (WEIGHTS, f"2_Dense/{WEIGHTS}", "2_Dense/config.json", "modules.json"):
        assert (here[0] / file).read_bytes() == (here[1] / file).read_bytes()
