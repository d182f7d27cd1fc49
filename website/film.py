"""Draws the moving picture of the README from the folder of a demo: four answers, a hop that is
dropped, and the search.

    hf-evomerge demo --out evomerge-demo
    python website/film.py evomerge-demo --font ipaexg.ttf    # writes docs/images/demo.gif
    # and each frame as a PNG, to look at
    python website/film.py evomerge-demo --font ipaexg.ttf --frames build/film

The font must have Japanese letters; the package matplotlib-fontja on PyPI brings one. Answers and
accuracies are those of the models in the folder, computed again here.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from hf_evomerge.fitness import Example
from hf_evomerge.fitness.text.numbers import last_number
from hf_evomerge.pictures.marks import Mark, Rect, Symbol, Text
from hf_evomerge.pictures.matplotlib_painter import paint_figure
from hf_evomerge.pictures.path import path_scene
from hf_evomerge.pictures.scene import PIXELS, Panel, Scene
from hf_evomerge.recipes.layer_path import LayerPath
from hf_evomerge.recipes.recipe import Recipe
from hf_evomerge.search.evaluation.evaluator import Evaluator
from hf_evomerge.search.study.paths import settings_in
from hf_evomerge.search.study.study import Study

ROOT = Path(__file__).resolve().parents[1]
WIDTH = 571
HEIGHT = 420
DPI = 140  # of a scene in its pixels; 800 by 588 in the file
RIGHT = "s2"
WRONG = "s1"
TRIALS = 18  # of the search that are shown, more of the first ones, which bring most


@dataclass(frozen=True)
class Frame:
    """A picture and for how many milliseconds it is shown."""

    marks: Sequence[Mark]
    shown: int
    behind: Sequence[Panel] = ()

    def paint(self) -> Image.Image:
        """Draw it in the colours of a page."""
        scene = Scene(WIDTH, HEIGHT, (*self.behind, Panel(PIXELS, tuple(self.marks))), "")
        file = io.BytesIO()
        paint_figure([scene]).savefig(file, format="png", dpi=DPI, facecolor="white")
        return Image.open(file).convert("RGB")


class Film:
    """The frames of a demo's DFS search.

    Args:
        folder: The folder of the search.
    """

    def __init__(self, folder: Path) -> None:
        self.config = settings_in(folder)
        self.study = Study.open(folder)
        self.winner, self.evaluator = Recipe.load(folder / "recipe.yaml"), Evaluator(self.config)
        rows = json.loads((folder / "results.json").read_text(encoding="utf-8"))["rows"]
        self.solved = {row["stage"] + row["model"]: row["accuracy"] for row in rows}
        self.winners = next(row["accuracy"] for row in rows if row["winner"])
        self.examples = self.evaluator.tasks.examples("test")
        self.layers = [8] * len(self.config.sources)

    def frames(self) -> Iterator[Frame]:
        """All frames, in order."""
        example = self.examples[0]
        yield from self.answers(example)
        yield from self.dropped(example)
        yield from self.replay()

    def answers(self, example: Example) -> Iterator[Frame]:
        """The problem, and one model's answer after the other."""
        targets = {"the base": self.config.base, "Japanese fine-tune": self.config.sources[0]}
        targets |= {"maths fine-tune": self.config.sources[1], "the evolved merge": self.winner}
        shares = [
            self.solved["basebase"],
            self.solved["sourcejapanese"],
            self.solved["sourcemaths"],
            self.winners,
        ]
        half = example.prompt.find("。", len(example.prompt) // 3) + 1
        marks: list[Mark] = [
            Text((14, 24), "Two fine-tunes of one base. Which model solves this?", "title"),
            *(
                Text((14, 52 + 20 * at), part.strip())
                for at, part in enumerate((example.prompt[:half], example.prompt[half:]))
            ),
            Text((14, 94), (example.gloss or "").rpartition(" The answer")[0], "tick"),
            Text(
                (WIDTH - 14, 116), f"solved, of {len(self.examples)} problems", "tick", anchor="end"
            ),
        ]
        yield Frame(list(marks), 700)
        for at, ((name, target), share) in enumerate(zip(targets.items(), shares, strict=True)):
            marks += self._answer(
                name,
                self.evaluator.answer(target, example, 12),
                example.answer,
                share,
                160 + 70 * at,
            )
            yield Frame(list(marks), 400 if at < 3 else 1200)

    def _answer(self, name: str, answer: str, right: str, share: float, y: float) -> list[Mark]:
        colour, word = judged(answer, right)
        bar = 120.0
        return [
            Rect((WIDTH / 2, y), (WIDTH - 20, 58), "used" if colour == RIGHT else "unused", colour),
            Text((20, y - 8), name, "title"),
            Text((20, y + 14), answer),
            Text((190, y + 4), word, "name", colour),
            Rect((WIDTH - 80 - bar / 2, y), (bar, 12), "unused"),
            Rect((WIDTH - 80 - bar + bar * share / 2, y), (bar * share, 12), "point", colour),
            Text((WIDTH - 18, y + 4), f"{share:.1%}", "value", colour, anchor="end"),
        ]

    def dropped(self, example: Example) -> Iterator[Frame]:
        """The path of the winner, and the same without the last hop that it cannot do without."""
        flow = self.winner.flow
        assert flow is not None
        path = flow.to_path()
        panels = self._path(path)
        words = f"Its path: {len(path)} layers of both models, one after the other"
        yield Frame(
            self._said(words, self.evaluator.answer(self.winner, example, 12), example.answer),
            800,
            panels,
        )
        for at in reversed(range(len(path))):
            fewer = LayerPath(path.hops[:at] + path.hops[at + 1 :])
            without = flow.model_copy(update={"path": fewer.as_text(), "scales": fewer.scales})
            answer = self.evaluator.answer(
                self.winner.model_copy(update={"flow": without}), example, 12
            )
            if answer != example.answer:
                cross = Symbol(
                    panels[0].axes.spot((at + 1, self._row(path, at))),
                    11.0,
                    "chosen",
                    shape="cross",
                )
                yield Frame(
                    [
                        *self._said(f"Drop hop {at + 1}, and it answers", answer, example.answer),
                        cross,
                    ],
                    1300,
                    panels,
                )
                return

    def _said(self, words: str, answer: str, right: str) -> list[Mark]:
        colour, word = judged(answer, right)
        return [
            Text((14, 24), words, "title"),
            Text((14, 46), answer),
            Text((150, 46), word, "name", colour),
        ]

    def _row(self, path: LayerPath, at: int) -> float:
        """The row of a hop on the picture of its path: `path_scene` draws its symbol there."""
        panel = self._path(path)[0]
        group = next(
            mark for mark in panel.marks if getattr(mark, "tip", "").startswith(f"Hop {at + 1}:")
        )
        return float(group.marks[0].at[1])  # type: ignore[union-attr]

    def replay(self) -> Iterator[Frame]:
        """Paths on the way of the search, with the share of the held-out problems that each
        solves."""
        trials = [trial for trial in self.study.trials("dfs") if trial.recipe_key is not None]
        numbers = sorted({round(len(trials) ** (at / (TRIALS - 1))) - 1 for at in range(TRIALS)})
        recipes = [self.study.recipe(trials[number].recipe_key or "") for number in numbers] + [
            self.winner
        ]
        paths = [recipe.flow.to_path() for recipe in recipes if recipe.flow is not None]
        for at, (recipe, path) in enumerate(zip(recipes, paths, strict=True)):
            share = self.evaluator.evaluate(recipe, "test").accuracy or 0.0
            last = at == len(recipes) - 1
            step = "the winner" if last else f"step {numbers[at] + 1}"
            marks: list[Mark] = [
                Text((14, 24), "The search that found it, replayed", "title"),
                Text((WIDTH - 14, 24), step, "tick", anchor="end"),
                Rect((14 + 200, 42), (400, 12), "unused"),
                Rect((14 + 200 * share, 42), (400 * share, 12), "point", RIGHT),
                Text((424, 47), f"solves {share:.1%}", "value", RIGHT),
            ]
            yield Frame(marks, 1500 if last else 90, self._path(path))

    def _path(self, path: LayerPath) -> tuple[Panel, ...]:
        """The picture of a path below two lines of words, without its own title and legend."""
        names = ["Japanese fine-tune", "maths fine-tune"]
        grid = path_scene(path, names, self.layers, selected=-1, width=WIDTH).panels[0]
        up = grid.axes.top - 74
        return (
            replace(
                grid, axes=replace(grid.axes, top=grid.axes.top - up, bottom=grid.axes.bottom - up)
            ),
        )


def judged(answer: str, right: str) -> tuple[str, str]:
    """The colour of an answer, and in words what is wrong with it."""
    if answer == right:
        return RIGHT, "\N{CHECK MARK} right"
    what = "number"
    if last_number(answer) == last_number(right):  # 10 for ten in kanji, or in English
        what = "digits" if answer[0] == right[0] else "language"
    return WRONG, f"\N{BALLOT X} wrong {what}"


def save(frames: Sequence[Frame], file: Path, folder: Path | None) -> None:
    """Write frames as a GIF that begins again, with one palette for all of them."""
    painted = [frame.paint() for frame in frames]
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        for at, picture in enumerate(painted):
            picture.save(folder / f"{at:02}.png")
    strip = Image.new("RGB", (painted[0].width, painted[0].height * len(painted)))
    for at, picture in enumerate(painted):
        strip.paste(picture, (0, at * picture.height))
    palette = strip.quantize(64, Image.Quantize.MEDIANCUT)
    small = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in painted]
    shown = [frame.shown for frame in frames]
    small[0].save(
        file, save_all=True, append_images=small[1:], duration=shown, loop=0, optimize=True
    )
    print(
        f"{file}: {len(frames)} frames, {sum(shown) / 1000:.1f} s, "
        f"{file.stat().st_size / 1e6:.2f} MB"
    )


def main() -> None:
    """Read the options and draw the film."""
    from matplotlib import font_manager, rc_context

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("demo", type=Path, help="folder of `hf-evomerge demo`")
    parser.add_argument(
        "--font", required=True, type=Path, help="a font file with Japanese letters"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images" / "demo.gif")
    parser.add_argument("--frames", type=Path, help="folder for the frames as PNG")
    options = parser.parse_args()
    font_manager.fontManager.addfont(options.font)
    family = font_manager.FontProperties(fname=options.font).get_name()
    with rc_context({"font.family": ["DejaVu Sans", family]}):
        save(list(Film(options.demo / "dfs").frames()), options.out, options.frames)


if __name__ == "__main__":
    main()
