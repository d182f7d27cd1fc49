"""The Space of a model that sees: published with its examples' pictures, asked with them or with a
visitor's, within limits."""

import base64
import io
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import httpx
import numpy as np
import pytest
import seeing
from gradio_client.exceptions import AppError
from hub_fixtures import hub_in
from models import EVOLVED, AnswerJob
from PIL import Image
from refusals import refused
from slowly import slow_beyond
from specialists.pictures import SIGHT, picture_config, write_picture_problems
from texts import SpaceError

from hf_evomerge import EvoMergeError, Recipe, run_search
from hf_evomerge.demo.publish import publish_demo
from hf_evomerge.demo.quickstart import SPECIALISTS
from hf_evomerge.search.evaluation.evaluator import Evaluator
from hf_evomerge.search.file.sections import CompareConfig
from hf_evomerge.search.study.paths import settings_in


def _file(picture=None, kind="PNG"):
    buffer = io.BytesIO()
    (picture or Image.new("RGB", (24, 24))).save(buffer, format=kind)
    return buffer.getvalue()


def _ask(served, key=EVOLVED, tokens=8, **more):
    """The answer to the first example, with its pictures."""
    shown = served.show.published.examples[0]
    job = AnswerJob(key, shown.prompt, tokens, pictures=shown.pictures, **more)
    return served.show.host.whole_answer(job).text


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """The Hub that the client talks to."""
    with hub_in(tmp_path_factory.mktemp("hub"), user="demo") as (hub, _):
        yield hub


@pytest.fixture(scope="module", params=slow_beyond(["ps"], ["ps", "dfs"]))
def search(request, hub, tmp_path_factory):
    """A short search of the demo's model that sees, published with its Space and its sources."""
    folder = tmp_path_factory.mktemp("seeing") / request.param
    family = folder.parent / "family"
    family.mkdir()
    for model in (SPECIALISTS / "base", SPECIALISTS / "japanese", SIGHT):
        (family / model.name).symlink_to(model)
    data = write_picture_problems(folder / "data", {"search": 4, "test": 3})
    config = picture_config(request.param, data, 2, 0, family, family / "sight").model_copy(
        update={"compare": CompareConfig(baselines=())}
    )
    run_search(config, folder)
    publish_demo(folder, family, f"demo/{folder.name}", space=True)
    return folder


@pytest.fixture(scope="module")
def served(search, serve):
    """The page of the published model."""
    served = serve(f"demo/{search.name}")
    assert served.show.ready_for.wait(60)
    return served


def test_models_answer_as_in_the_search(search, served):
    """The evolved model and each parent, one of which is blind by itself, give the answers that the
    search scored; another path gives another."""
    published, _ = served.show.need()
    evaluator = Evaluator(settings_in(search))
    example = evaluator.tasks.examples("test")[0]
    shown = published.examples[0]
    drawn, loaded = (
        [picture.load().tobytes() for picture in each.pictures] for each in (shown, example)
    )
    assert drawn == loaded
    assert published.sees
    assert not published.notes
    config = evaluator.config
    targets = {EVOLVED: Recipe.load(search / "recipe.yaml"), f"{search.name}-base": config.base}
    targets |= {f"{search.name}-{Path(ref.model).name}": ref for ref in config.sources}
    for label, target in targets.items():
        said = _ask(served, label, 12)
        assert said == evaluator.answer(target, example, 12), label
        assert served.show.rehearsed[shown.prompt, shown.pictures][label].text.startswith(said)
    if published.path:
        changed = _ask(served, hops=published.path[:1], scales=published.scales[:1])
        assert changed != _ask(served)


def test_strangers_pictures(served):
    """The API takes pictures as texts; without them, or with too few, it says what is missing;
    other words need no mark."""
    client = served.client()
    example = client.predict(api_name="/about")["examples"][0]
    seen = example["pictures"]

    def answer(pictures, prompt=example["prompt"]):
        return client.predict(prompt, EVOLVED, 8, pictures, api_name="/answer")

    answered = answer(seen)
    assert answered["text"] == _ask(served)
    assert answered["right"] is not None
    other = base64.b64encode(_file()).decode()
    assert answer([other, seen[1]])["right"] is None
    for wrong, said in (
        (seen[0], r"2 places for pictures .* 1 picture"),
        ("http://127.0.0.1/a.png", "not followed"),
        (base64.b64encode(b"GIF8").decode(), "no picture"),
    ):
        with refused(AppError, said):
            answer([wrong])
    assert answer([other], "\u7c60")["tokens"] >= 1


def test_files_of_visitors_do_not_stay(served):
    """The page looks every ten minutes which uploads are older than an hour, and removes these."""
    assert served.blocks.delete_cache == (600, 3600)


def test_a_gallery_follows_no_address(served):
    """A visitor who sends an address in place of a file is told so, and it is not opened."""
    image = {"path": f"{served.url}favicon.ico", "meta": {"_type": "gradio.FileData"}}
    config = httpx.get(f"{served.url}config").json()
    names = {part["id"]: part["props"].get("elem_id") for part in config["components"]}
    wanted = ["ev-prompt", "ev-pictures", "ev-others", "ev-tokens"]
    (number, *_) = [
        one["id"]
        for one in config["dependencies"]
        if [names[part] for part in one["inputs"]] == wanted
    ]
    data = ["w", [{"image": image, "caption": None}], [], 4]
    body = {"data": data, "fn_index": number, "session_hash": "s", "trigger_id": None}
    httpx.post(f"{served.url}gradio_api/queue/join", json=body)
    with httpx.stream("GET", f"{served.url}gradio_api/queue/data?session_hash=s") as events:
        said = next(line for line in events.iter_lines() if "process_completed" in line)
    assert "Addresses are not followed" in said


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"x" * (seeing.MAX_BYTES + 1), "may have 8 MB"),
        (_file(Image.new("RGB", (4100, 4100))), "16 million"),
        (_file(kind="TIFF"), "no picture"),
    ],
)
def test_pictures_have_limits(data, said):
    """What is no picture, too large, or in another format, is refused by its header, in one
    line."""
    with refused(EvoMergeError, said):
        seeing.checked([data])
    with refused(EvoMergeError, "give 8 at most"):
        seeing.checked([_file()] * 9)


def test_a_damaged_picture_is_said(served):
    """One that ends too soon passes the header's check, and is one line."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    cut = seeing.checked([_file(Image.fromarray(noise))[:3000]])
    with refused(SpaceError, "cannot be read"):
        served.show.host.whole_answer(AnswerJob(EVOLVED, "w", 4, pictures=cut))
