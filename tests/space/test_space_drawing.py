"""The Space of a diffusion pipeline: a picture for a class and a seed, and a line for what cannot
be drawn."""

from functools import partial
from pathlib import Path

import pytest
import torch
from gradio_client import Client
from gradio_client.exceptions import AppError
from hub_fixtures import hub_in, upload_models
from huggingface_hub import ModelCard
from pipelines import loaded, save_dit
from refusals import refused
from safetensors.torch import load_file

from hf_evomerge import (
    Example,
    FunctionTask,
    PushOptions,
    SearchConfig,
    push_model,
    reproduce,
    run_search,
)
from hf_evomerge.errors import HubError
from hf_evomerge.fitness import draw


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A client of the page of a tiny DiT, and what draws."""
    import app

    folder = tmp_path_factory.mktemp("drawing") / "dit"
    save_dit(folder, 0)
    blocks, painter = app.serve(
        str(folder), prevent_thread_lock=True, quiet=True, server_name="127.0.0.1"
    )
    try:
        yield Client(blocks.local_url, verbose=False), painter
    finally:
        blocks.close()


def test_the_same_seed_gives_the_same_picture(served):
    """And another seed another one."""
    client, _ = served
    files = (client.predict("3", seed, 2, api_name="/draw") for seed in (1, 1, 2))
    first, again, other = (Path(file).read_bytes() for file in files)
    assert first == again != other


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (("a cat", 0, 2), "no number of a class"),
        (("9" * 30, 0, 1), "verflow"),  # of torch
        (("3", -1, 2), "Seeds go from 0"),
        (("3", None, 2), "Seeds"),
        (("3", 0, 1000), "steps from 1 to 100"),
        (("", 0, 1), "number"),
    ],
)
def test_what_cannot_be_drawn_is_said(served, asked, said):
    """Each in one line."""
    with refused(AppError, said):
        served[0].predict(*asked, api_name="/draw")


def brightness(pipeline, tokenizer, examples):
    """More light is better."""
    drawn = draw(pipeline, examples, num_inference_steps=2, output_type="np")
    return [float(picture.mean()) for picture in drawn]


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Two pipelines on a Hub, a search of two generations that merges them, and its winner
    published with a Space."""
    folder = tmp_path_factory.mktemp("published")
    parents = [folder / "a", folder / "b"]
    for seed, parent in enumerate(parents):
        save_dit(parent, 10 * seed)
    config = SearchConfig.model_validate(
        {
            "space": "ps",
            "sources": [{"model": str(each), "component": "transformer"} for each in parents],
            "merge": {"method": "linear", "groups": "model"},
            "optimize": [{"evaluations": 8, "population": 4}],
            "fitness": {"task": "likelihood"},
            "compare": {"baselines": []},
        }
    )
    examples = {"search": [Example(str(number), "") for number in range(2)]}
    task = partial(FunctionTask, brightness)
    run_search(config, folder / "search", task_factory=task, examples=examples)
    with hub_in(folder) as (_, api):
        options = PushOptions(published=upload_models(api, *parents), space=True)
        push_model(folder / "search", "local/bright", options, api=api)
        assert not push_model(folder / "search", "local/bright", options, api=api).model.changed
        yield folder / "search", api


def test_an_evolved_pipeline_is_published_and_loads(published):
    """diffusers loads from the Hub the very weights that were built; recipe, record and card are
    beside them; no pickle."""
    search, api = published
    pipeline = loaded("local/bright")
    state = load_file(search / "model" / "transformer" / "diffusion_pytorch_model.safetensors")
    for name, tensor in pipeline.transformer.state_dict().items():
        assert torch.equal(state[name], tensor)
    names = set(api.list_repo_files("local/bright"))
    assert {"model_index.json", "vae/config.json", "scheduler/scheduler_config.json"} <= names
    assert {"recipe.yaml", "study.json", "trials.parquet"} <= names
    assert not {name for name in names if name.endswith((".bin", ".pt", ".py"))}
    card = ModelCard.load("local/bright")
    said = (card.data.library_name, card.data.pipeline_tag, card.data.base_model)
    assert said == ("diffusers", "unconditional-image-generation", ["local/a", "local/b"])
    assert {"merge", "evomerge"} <= set(card.data.tags)
    assert "The component `transformer` of this pipeline is a merge" in card.content
    assert "GGUF" not in card.content
    assert 'DiffusionPipeline.from_pretrained("local/bright")' in card.content
    folder = Path(api.snapshot_download("local/bright"))
    for file in folder.rglob("*.[jym]*"):
        assert str(search.parent) not in file.read_text(), file


def test_it_is_rebuilt_to_the_same_bits(published):
    """`reproduce` finds every weights file and config the same; a component's file that was changed
    is refused."""
    _, api = published
    assert reproduce("local/bright", api=api).same
    api.upload_file(
        repo_id="local/bright", path_in_repo="vae/more.safetensors", path_or_fileobj=b"x"
    )
    with refused(HubError, r"vae/more.safetensors is not in its recipe.yaml"):
        reproduce("local/bright", api=api)


def test_its_space_draws(published, monkeypatch):
    """The Space shows the page that draws, with the pictures of the published weights; where memory
    is short it says so."""
    import loading
    from drawing import Painter, draws

    search, api = published
    assert {"drawing.py", "space.json"} <= set(
        api.list_repo_files("local/bright", repo_type="space")
    )
    assert draws("local/bright")
    painters = [Painter(name) for name in ("local/bright", str(search / "model"))]
    for painter in painters:
        painter.load()
        assert not painter.error
    first, local = (painter.draw("1", 0, 2) for painter in painters)
    assert first.tobytes() == local.tobytes()
    monkeypatch.setattr(loading, "free_memory", lambda: 1000.0)
    short = Painter("local/bright")
    short.load()
    assert "GB of memory" in short.error
