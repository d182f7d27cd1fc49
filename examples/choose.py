# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-evomerge[diffusion,space]"]
# ///
"""Lets a person choose among the pictures of a diffusion merge, and evolves it towards the choice.

A page shows the candidates of a generation, each with a picture for every prompt. One click says
which is best, and the next generation is drawn; a button builds the last choice as OUT/model. Close
the page whenever you like: the same command shows the same candidates again.

    python choose.py search.yaml --out my-choices

The search file has `space: ps`, one step, at most 16 prompts in `data: search`, and `fitness:
{task: clip, ...}` with the `arguments` of drawing. CLIP itself is not loaded: you judge.
"""

import argparse
import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gradio as gr
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import make_image_grid
from PIL import Image

from hf_evomerge import EvoMergeError, Recipe, Search, SearchConfig, build_model, load_examples
from hf_evomerge.fitness import ClipSpec, draw

MOST = 16  # prompts, whose pictures a person can compare
SIDE = 256  # pixels of a picture on the page
STYLE = """
#candidates .grid-wrap { max-height: none }
#candidates .thumbnail-item { aspect-ratio: auto; height: auto }
@media (max-width: 600px) {
  #candidates .grid-container { grid-template-columns: repeat(2, 1fr) !important }
}
"""


class Choices:
    """Search whose scores are choices. Nothing is kept but its study, which is opened for each.

    Attributes:
        first: The number of the first candidate on show.
        pictures: A picture of each candidate; none where the budget is spent.
    """

    def __init__(self, file: Path, out: Path, device: str) -> None:
        self.config = SearchConfig.load(file)
        self.out = out
        self.device = device
        self.fitness = self.config.fitness
        self.first = -1
        self.pictures: list[Image.Image] = []
        if len(self.config.stages) > 1:
            raise EvoMergeError(f"{file}: a person chooses in one step; leave out what else runs")
        if not isinstance(self.fitness, ClipSpec):
            raise EvoMergeError(f"{file}: fitness: write task: clip, whose arguments draw")
        if "search" not in self.config.data:
            raise EvoMergeError(f"{file}: data.search: not given; name a file of prompts")
        self.examples = load_examples(self.config.data["search"])
        if (count := len(self.examples)) > MOST:
            raise EvoMergeError(f"{file}: data.search: {count} prompts; write {MOST} at most")
        self.go_on()

    def go_on(self, choice: int | None = None) -> None:
        """Tell which candidate is best, and draw those that are asked for then."""
        with Search.open(self.config, self.out) as search:
            candidates = search.ask()
            on_show = bool(candidates) and candidates[0].number == self.first
            if on_show and choice is not None:
                chosen = candidates.pop(choice)
                for other in candidates:
                    search.tell(other, 0.0)
                # CMA-ES looks at ranks in a generation. Over all of them, the last choice is best.
                before = [trial.fitness or 0.0 for trial in search.study.trials()]
                search.tell(chosen, max(before, default=0.0) + 1)
                candidates = search.ask()
        self.pictures = [self.drawn(candidate.recipe) for candidate in candidates]
        self.first = candidates[0].number if candidates else -1

    def drawn(self, recipe: Recipe) -> Image.Image:
        """The pictures of a candidate, side by side."""
        dtype = getattr(torch, self.config.output.dtype or "float32")
        with TemporaryDirectory(dir=self.out) as folder:
            model = build_model(recipe, Path(folder) / "model", whole=True)
            if not (model / "model_index.json").is_file():
                raise EvoMergeError("sources: are no diffusion pipelines, so there are no pictures")
            pipeline = DiffusionPipeline.from_pretrained(
                model, dtype=dtype, use_safetensors=True, trust_remote_code=False
            )
        size, arguments = self.fitness.batch_size, self.fitness.arguments
        pictures = draw(pipeline.to(self.device), self.examples, batch_size=size, **arguments)
        columns = math.ceil(math.sqrt(len(pictures)))
        rows = math.ceil(len(pictures) / columns)
        empty = [Image.new("RGB", (1, 1), "white")] * (rows * columns - len(pictures))
        return make_image_grid([*pictures, *empty], rows, columns, resize=SIDE)

    def build(self) -> Path:
        """Build the last choice."""
        with Search.open(self.config, self.out) as search:
            winner = search.winner
        winner.save(self.out / "recipe.yaml")
        return build_model(winner, self.out / "model", overwrite=True)


def page_of(choices: Choices) -> gr.Blocks:
    """The page: the candidates, and a button that builds."""

    def shown() -> tuple[Any, ...]:
        if not choices.pictures:
            return -1, "The budget is spent. Build the one that you chose last.", []
        last = choices.first + len(choices.pictures)
        budget = choices.config.stages[0].evaluations
        text = f"Candidates {choices.first + 1} to {last} of {budget}: click the best."
        return choices.first, text, gr.Gallery(choices.pictures, selected_index=None)

    def clicked(first: int, event: gr.SelectData) -> tuple[Any, ...]:
        if first == choices.first:  # else the page is old, and is shown what is new
            choices.go_on(event.index)
        return shown()

    def build() -> str:
        return f"Built: `{choices.build()}`"

    with gr.Blocks(title="Choose") as page:
        gr.Markdown("# Which one is best?")
        text = gr.Markdown()
        first = gr.State()
        gallery = gr.Gallery(
            elem_id="candidates", columns=3, show_label=False, allow_preview=False, buttons=[]
        )
        built = gr.Markdown()
        gr.Button("Build the one I chose last").click(build, outputs=built)
        everything = [first, text, gallery]
        page.load(shown, outputs=everything)
        gallery.select(clicked, first, everything)
    return page


def main() -> None:
    """Open the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="the search file")
    parser.add_argument("--out", type=Path, required=True, help="the folder of the study")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=device, help="what draws (here %(default)s)")
    given = parser.parse_args()
    try:
        choices = Choices(given.file, given.out, given.device)
    except EvoMergeError as error:
        raise SystemExit(str(error)) from None
    page_of(choices).launch(server_name="127.0.0.1", css=STYLE, show_error=True)


if __name__ == "__main__":
    main()
