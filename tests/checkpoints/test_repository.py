"""Sources on the Hub: checked before their weights are fetched, checked again when they came, and
used from the cache."""

import re
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from commands import invoke
from faulty_hub import Fault
from hub_fixtures import use_hub
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars, httpx
from recipes import merge_of
from refused import refused
from safetensors.torch import load_file
from sentence import sentence_folder
from tiny_adapters import save_adapter
from tiny_models import tiny_model
from words import word_tokenizer

from hf_evomerge.checkpoints.repository import Repository

NAMES = ("base", "a", "b")
WEIGHTS = "model.safetensors"


def recipe_of(prefix="local/"):
    """A merge of the tiny family under these names."""
    merge = {"parameters": [{"weight": 0.9, "density": 0.5}, {"weight": 0.4}]}
    models = (f"{prefix}{name}" for name in "ab")
    return merge_of(*models, method="dare_ties", base=f"{prefix}base", merge=merge)


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

    def go(*words, status=0, home="client", endpoint=there, offline=False):
        with pytest.MonkeyPatch.context() as patch:
            use_hub(patch, SimpleNamespace(endpoint=endpoint, token=token), tmp_path / home)
            patch.setattr(constants, "HF_HUB_OFFLINE", offline)
            patch.chdir(tmp_path)
            disable_progress_bars()
            done = invoke(*words)
            enable_progress_bars()
            assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
            assert done.exit_code == status, done.stderr
            return done

    return go


@pytest.fixture
def merge(run, tmp_path):
    """Runs `hf-evomerge merge` of a recipe, which is written to a file."""

    def go(recipe, *words, out="out", **how):
        recipe.save(tmp_path / "recipe.yaml")
        return run("merge", "recipe.yaml", "--out", out, *words, **how)

    return go


def cached(tmp_path):
    """The weights in the client's cache."""
    return sorted((tmp_path / "client").rglob("*.safetensors"))


def test_a_dry_run_fetches_no_weights(hub, family, merge, tmp_path):
    """Everything is checked from small files and headers that are read by range; the cache holds no
    weights afterwards."""
    before = len(hub.requests)
    done = merge(recipe_of(), "--dry-run")
    assert done.stdout.startswith("fine: dare_ties of 2 sources, as ")
    assert cached(tmp_path) == []
    fetched = [
        seen for seen in hub.requests[before:] if seen.method == "GET" and WEIGHTS in seen.target
    ]
    assert fetched
    assert all("range" in {name.lower() for name in seen.headers} for seen in fetched)


def test_weights_are_fetched_checked_and_kept(hub, family, merge, tiny, built, tmp_path):
    """A build from the Hub has the bits of a build from folders, and works again from the cache
    when the Hub is gone."""
    merge(recipe_of())
    expected = (built(recipe_of(f"{tiny}/"), "folders") / WEIGHTS).read_bytes()
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == expected
    kept = {file.read_bytes() for file in cached(tmp_path)}
    assert kept == {(tiny / name / WEIGHTS).read_bytes() for name in NAMES}
    hub.stop()
    for offline in (False, True):
        out = f"again-{offline}"
        merge(recipe_of(), out=out, offline=offline, endpoint="http://127.0.0.1:9")
        assert (tmp_path / out / WEIGHTS).read_bytes() == expected
    hub.start()


def test_sources_that_do_not_fit_cost_no_download(lfs_api, family, merge, tmp_path):
    """Sources of other shapes are refused, with both sides, before any weights are fetched."""
    tiny_model("llama", 2, vocab_size=26).save_pretrained(tmp_path / "wide")
    publish(lfs_api, tmp_path / "wide", "local/wide")
    done = merge(merge_of("local/a", "local/wide"), status=1)
    assert re.search(
        r"lm_head.weight: shape \[26, 16\] in local/a@\w{12}, \[26, 32\] in local/wide@\w{12};",
        done.stderr,
    )
    assert len(done.stderr.splitlines()) == 1
    assert cached(tmp_path) == []


def test_a_damaged_download_is_refused_and_made_good(hub, family, merge, tiny, built, tmp_path):
    """A byte that changed on the way is noticed, the file leaves the cache, and the next run
    fetches it again."""
    at = (tiny / "a" / WEIGHTS).stat().st_size - 3  # the header stays as it is
    hub.faults.add(Fault("GET /content/models/local/a/", "corrupt", times=None, at=at))
    said = merge(recipe_of(), status=1).stderr
    assert said.startswith("error: local/a: model.safetensors: what was downloaded has sha256 ")
    assert said.endswith("; it was removed from the cache, run the command again\n")
    assert cached(tmp_path) == []
    hub.faults.clear()
    merge(recipe_of())
    expected = built(recipe_of(f"{tiny}/"), "folders")
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == (expected / WEIGHTS).read_bytes()


def test_a_gated_model_says_where_to_ask(monkeypatch):
    """A model that its authors have not opened is told apart from one that is not there."""
    response = httpx.Response(403, request=httpx.Request("GET", "https://hub"))
    error = GatedRepoError("403: access to model x is restricted", response=response)
    monkeypatch.setattr("huggingface_hub.snapshot_download", Mock(side_effect=error))
    with refused(r"^you/x: gated; ask for access on its page on the Hub, and log in"):
        Repository("you/x")


def test_what_cannot_be_had_is_one_line(hub, lfs_api, merge, no_waiting, tmp_path):
    """A repository that is not there, one without safetensors, and a Hub that is gone are told in
    one line each."""
    lfs_api.create_repo("local/empty")
    config = b'{"model_type": "llama"}'
    lfs_api.upload_file(path_or_fileobj=config, path_in_repo="config.json", repo_id="local/empty")

    def complaint(name, home="client"):
        (line,) = merge(merge_of(name), "--dry-run", home=home, status=1).stderr.splitlines()
        return line.removeprefix(f"error: {name}: ")

    nowhere = f"no folder in {tmp_path}, and no such model on the Hub, or it is private; "
    assert complaint("local/nowhere").startswith(nowhere)
    assert complaint("local/empty").startswith("no .safetensors file")
    for status, body, message in ((429, "later", "later; try again"), (200, "<html>log in", "")):
        hub.faults.add(Fault("", "status", times=None, status=status, body=body))
        assert complaint("local/empty", "another").startswith(message)
        hub.faults.clear()
    hub.stop()
    gone = r"no folder in \S+, not in the Hub cache, and the Hub cannot be reached"
    assert re.match(gone, complaint("local/empty", "other"))
    hub.start()


def test_adapters_are_fetched_too(lfs_api, family, merge, tiny, tmp_path):
    """A model and its adapter may both be on the Hub; a dry run fetches neither's weights, a merged
    adapter not the base's.

    An adapter on the Hub names no folder of this machine as its base.
    """
    save_adapter(tiny / "a", tmp_path / "lora", 0, target_modules=["q_proj"])
    publish(lfs_api, tmp_path / "lora", "local/lora")
    recipe = merge_of(("local/a", "local/lora"))
    merge(recipe, "--dry-run")
    assert cached(tmp_path) == []
    merge(recipe, out="adapter")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    assert [file.name for file in cached(tmp_path)] == ["adapter_model.safetensors"]
    line = (
        "local/lora: a LoRA adapter that names no base on the Hub; write {model: ITS BASE, "
        "adapter: local/lora}"
    )
    assert line in merge(merge_of("local/lora"), out="alone", status=1).stderr
    merge(recipe, "--whole")
    merged = load_file(tmp_path / "out" / WEIGHTS)
    plain = load_file(tiny / "a" / WEIGHTS)
    changed = {name for name in plain if not torch.equal(plain[name], merged[name])}
    assert changed == {f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 1)}


def test_modules_after_an_encoder_are_fetched(lfs_api, built, tmp_path):
    """The weights of a Dense layer are fetched with the small files, and merged as those of a
    folder are."""
    tokenizer = word_tokenizer(["<pad>", "<bos>", "<eos>", "<unk>", "one"])
    for seed, name in enumerate("ab"):
        sentence_folder(tmp_path / name, tokenizer, seed)
        lfs_api.create_repo(f"local/{name}")
        lfs_api.upload_folder(folder_path=tmp_path / name, repo_id=f"local/{name}")
    places = {"here": str(tmp_path), "there": "local"}
    here = [built(merge_of(f"{p}/a", f"{p}/b"), out) for out, p in places.items()]
    for file in (WEIGHTS, f"2_Dense/{WEIGHTS}", "2_Dense/config.json", "modules.json"):
        assert (here[0] / file).read_bytes() == (here[1] / file).read_bytes()
