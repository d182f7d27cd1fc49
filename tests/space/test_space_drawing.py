"""The Space of a diffusion pipeline: a picture for a class and a seed, and a line for what cannot
be drawn."""

from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from gradio_client import Client
from gradio_client.exceptions import AppError
from hub_fixtures import use_hub
from huggingface_hub import ModelCard
from local_hub import LocalHub
from pipelines import save_dit
from safetensors.torch import load_file

from hf_evomerge import Example, FunctionTask, SearchConfig, run_search
from hf_evomerge.errors import HubError
from hf_evomerge.fitness import draw
from hf_evomerge.hub.push import push_model
from hf_evomerge.hub.push_plan import PushOptions
from hf_evomerge.hub.reproduce import reproduce


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
    first, again, other = (
        Path(served[0].predict("3", seed, 2, api_name="/draw")).read_bytes() for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_what_cannot_be_drawn_is_said(served):
    """Each in one line."""
    from texts import SpaceError

    with pytest.raises(AppError, match="the number of one"):
        served[0].predict("a cat", 0, 2, api_name="/draw")
    with pytest.raises(AppError, match="verflow"):  # of torch
        served[0].predict("9" * 30, 0, 1, api_name="/draw")
    calls = {
        ("3", -1, 2): "Seeds go from 0",
        ("3", None, 2): "Seeds",
        ("3", 0, 1000): "steps from 1 to 100",
        ("", 0, 1): "number",
    }
    for asked, said in calls.items():
        with pytest.raises(SpaceError, match=said):
            served[1].draw(*asked)


def brightness(pipeline, tokenizer, examples):
    """More light is better."""
    return [
        float(picture.mean())
        for picture in draw(pipeline, examples, num_inference_steps=2, output_type="np")
    ]


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Two pipelines on a Hub, a search of two generations that merges them, and its winner
    published with a Space."""
    folder = tmp_path_factory.mktemp("published")
    with pytest.MonkeyPatch.context() as patch, LocalHub(folder / "hub", user="demo") as hub:
        api = use_hub(patch, hub, folder / "client")
        for seed, name in enumerate(("a", "b")):
            save_dit(folder / name, 10 * seed)
            api.create_repo(f"demo/{name}")
            api.upload_folder(repo_id=f"demo/{name}", folder_path=folder / name)
        how = {
            "merge": {"method": "linear", "groups": "model"},
            "optimize": [{"evaluations": 8, "population": 4}],
        }
        sources = [{"model": str(folder / name), "component": "transformer"} for name in ("a", "b")]
        config = SearchConfig.model_validate(
            {
                "space": "ps",
                "sources": sources,
                **how,
                "fitness": {"task": "choice"},
                "compare": {"baselines": []},
            }
        )
        examples = {"search": [Example(str(number), "") for number in range(2)]}
        run_search(
            config,
            folder / "search",
            task_factory=lambda: FunctionTask(brightness),
            examples=examples,
        )
        options = PushOptions(
            published={str(folder / name): f"demo/{name}" for name in ("a", "b")}, space=True
        )
        push_model(folder / "search", "demo/bright", options, api=api)
        assert not push_model(folder / "search", "demo/bright", options, api=api).model.changed
        yield folder / "search", api


def test_an_evolved_pipeline_is_published_and_loads(published):
    """diffusers loads from the Hub the very weights that were built; recipe, record and card are
    beside them; no pickle."""
    search, api = published
    pipeline = DiffusionPipeline.from_pretrained(
        "demo/bright", use_safetensors=True, trust_remote_code=False
    )
    pipeline.set_progress_bar_config(disable=True)
    state = load_file(search / "model" / "transformer" / "diffusion_pytorch_model.safetensors")
    assert all(
        torch.equal(state[name], tensor)
        for name, tensor in pipeline.transformer.state_dict().items()
    )
    names = set(api.list_repo_files("demo/bright"))
    assert {"model_index.json", "vae/config.json", "scheduler/scheduler_config.json"} <= names
    assert {"recipe.yaml", "study.json", "trials.parquet"} <= names
    assert not {name for name in names if name.endswith((".bin", ".pt", ".py"))}
    card = ModelCard.load("demo/bright")
    said = (card.data.library_name, card.data.pipeline_tag, card.data.base_model)
    assert said == ("diffusers", "unconditional-image-generation", ["demo/a", "demo/b"])
    assert {"merge", "evomerge"} <= set(card.data.tags)
    assert "The component `transformer` of this pipeline is a merge" in card.content
    assert "GGUF" not in card.content
    code = card.content.split("```python\n")[1].split("```")[0]
    assert 'DiffusionPipeline.from_pretrained("demo/bright")' in code
    texts = [
        Path(api.hf_hub_download("demo/bright", name)).read_text()
        for name in names
        if name.endswith((".json", ".yaml", ".md"))
    ]
    assert not [text for text in texts if str(search.parent) in text]


def test_it_is_rebuilt_to_the_same_bits(published):
    """`reproduce` finds every weights file and config the same; a component's file that was changed
    is refused."""
    _, api = published
    assert reproduce("demo/bright", api=api).same
    api.upload_file(
        repo_id="demo/bright", path_in_repo="vae/more.safetensors", path_or_fileobj=b"x"
    )
    with pytest.raises(HubError, match=r"vae/more.safetensors is not in its recipe.yaml"):
        reproduce("demo/bright", api=api)


def test_its_space_draws(published, monkeypatch):
    """The Space shows the page that draws, with the pictures of the published weights; where memory
    is short it says so."""
    import loading
    from drawing import Painter, draws

    search, api = published
    assert {"drawing.py", "space.json"} <= set(
        api.list_repo_files("demo/bright", repo_type="space")
    )
    assert draws("demo/bright")
    painters = [Painter(name) for name in ("demo/bright", str(search / "model"))]
    for painter in painters:
        painter.load()
        assert not painter.error
    first, local = (painter.draw("1", 0, 2) for painter in painters)
    assert first.tobytes() == local.tobytes()
    monkeypatch.setattr(loading, "free_memory", lambda: 1000.0)
    short = Painter("demo/bright")
    short.load()
    assert "GB of memory" in short.error
