"""The page of a diffusion pipeline: a prompt or the number of a class, a seed, and the picture that
the model draws of them."""

from typing import Any

import gradio as gr
import loading
from published import as_float
from seeing import KEPT
from texts import SpaceError, escape, message

from hf_evomerge.checkpoints.model_folder import INDEX
from hf_evomerge.checkpoints.repository import find_folder
from hf_evomerge.errors import EvoMergeError, one_line
from hf_evomerge.fitness.tasks.drawing import asked
from hf_evomerge.record import MADE_WITH

MAX_STEPS = 100
MAX_SEED = 2**31 - 1
MAX_PROMPT = 1000  # characters


def draws(model: str, revision: str | None = None) -> bool:
    """Tell whether a folder or repository is a diffusion pipeline."""
    try:
        return (find_folder(model, revision)[0] / INDEX).is_file()
    except EvoMergeError:  # the page for texts says what is wrong
        return False


class Painter(loading.LoadedInBackground):
    """Holds the pipeline of a repository or folder, and lets one picture at a time be drawn."""

    def __init__(self, model: str, revision: str | None = None) -> None:
        super().__init__(model)
        self.model = model
        self.revision = revision
        self._pipeline: Any = None
        self._run = loading.on_gpu(self._draw)

    def _load(self) -> None:
        import torch
        from diffusers import DiffusionPipeline

        loading.check_memory(loading.weights_bytes(self.model, self.revision), self.model)
        pipeline = DiffusionPipeline.from_pretrained(
            self.model, use_safetensors=True, trust_remote_code=False, revision=self.revision
        )
        pipeline.set_progress_bar_config(disable=True)
        asked(pipeline, ["0"])  # which says where it draws neither prompts nor classes
        self._pipeline = (
            pipeline.to("cuda") if loading.zero_gpu() or torch.cuda.is_available() else pipeline
        )

    def draw(self, prompt: str, seed: float = 0, steps: float = 8) -> Any:
        """The picture of a prompt, or of the number of a class; the same for the same seed and
        steps. Raises `SpaceError`."""
        self.ready.wait()
        if self.error:
            raise SpaceError(self.error)
        prompt = str(prompt or "").strip()
        wanted = asked(self._pipeline, [prompt])
        if not prompt or len(prompt) > MAX_PROMPT:
            raise SpaceError(f"Give a prompt of 1 to {MAX_PROMPT} characters.")
        start = as_float(seed)
        count = as_float(steps)
        if (
            start is None
            or count is None
            or not (0 <= start <= MAX_SEED and 1 <= count <= MAX_STEPS)
        ):
            raise SpaceError(f"Seeds go from 0 to {MAX_SEED}, steps from 1 to {MAX_STEPS}.")
        return self._run(wanted, int(start), int(count))

    def _draw(self, wanted: dict[str, Any], seed: int, steps: int) -> Any:
        import torch

        with torch.inference_mode():
            drawn = self._pipeline(
                **wanted,
                num_inference_steps=steps,
                generator=torch.Generator("cpu").manual_seed(seed),
            )
        picture = drawn.images[0]
        scale = max(1, 384 // max(picture.size))
        return picture.resize([side * scale for side in picture.size], 0)  # nearest


def page(painter: Painter) -> gr.Blocks:
    """The page; its API has ``/draw``, which takes prompt, seed and steps."""

    def state() -> str:
        painter.ready.wait()
        return message(painter.error) if painter.error else ""

    def draw(prompt: str, seed: float, steps: float) -> Any:
        try:
            return painter.draw(prompt, seed, steps)
        except Exception as error:  # the pipeline has its own, such as of a class that there is not
            raise gr.Error(one_line(error), print_exception=False) from error

    with gr.Blocks(title="hf_evomerge", analytics_enabled=False, delete_cache=KEPT) as blocks:
        name = painter.model.rstrip("/").rpartition("/")[2]
        gr.HTML(f'<div class="ev-heading"><h1>{escape(name)}</h1></div>', elem_id="ev-heading")
        status = gr.HTML(message("Starting …"), elem_id="ev-status")
        with gr.Row(elem_id="ev-sides"):
            with gr.Column(min_width=300):
                prompt = gr.Textbox(
                    label="Prompt, or the number of a class", lines=2, elem_id="ev-prompt"
                )
                seed = gr.Number(
                    0, label="Seed", precision=0, minimum=0, maximum=MAX_SEED, elem_id="ev-seed"
                )
                steps = gr.Slider(1, MAX_STEPS, value=8, step=1, label="Steps", elem_id="ev-steps")
                button = gr.Button("Draw", variant="primary", elem_id="ev-draw")
            picture = gr.Image(
                label="Picture", type="pil", format="png", elem_id="ev-picture", min_width=300
            )
        gr.Markdown(MADE_WITH, elem_id="ev-made")
        blocks.load(state, outputs=status, api_visibility="private", show_progress="hidden")
        gr.on(
            [button.click, prompt.submit],
            draw,
            [prompt, seed, steps],
            picture,
            api_name="draw",
            concurrency_limit=1,
            preprocess=False,  # `draw` says itself what is out of range
        )
    return blocks
