"""An example of a task, and the pictures that go with it: decoded late, and within limits.

A picture comes with somebody else's data: only a few formats are decoded, and nothing larger than
the limits. Pillow is imported where a picture is.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import FitnessError, one_line, optional, told

if TYPE_CHECKING:
    from PIL.Image import Image

Record = Mapping[str, Any]
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MAX_BYTES = 32 << 20  # of a file
MAX_SIDE = 16_384  # pixels
MAX_PIXELS = 64 << 20


@dataclass(frozen=True)
class Picture:
    """A picture, not decoded yet.

    Attributes:
        data: What its file holds.
        where: Origin of the picture, for complaints.
    """

    data: bytes
    where: str

    @property
    def digest(self) -> str:
        """Digest by which two pictures are the same."""
        return sha256(self.data).hexdigest()

    def load(self) -> Image:
        """The picture in RGB; raises `FitnessError` where it cannot be decoded."""
        image = self.open()
        damaged = f"{self.where}: the picture cannot be read: "
        with told(FitnessError, (OSError, ValueError, SyntaxError), damaged):
            return image.convert("RGB")

    def open(self) -> Image:
        """Read the picture's header; raises `FitnessError` beyond the limits."""
        pillow = optional("PIL.Image", "vision", "pictures: reading them", FitnessError)
        if len(self.data) > MAX_BYTES:
            raise FitnessError(
                f"{self.where}: a picture of {len(self.data)} bytes; the limit is {MAX_BYTES}"
            )
        try:
            image: Image = pillow.open(io.BytesIO(self.data), formats=FORMATS)
        except (OSError, ValueError, SyntaxError, pillow.DecompressionBombError) as cause:
            why = (
                "" if isinstance(cause, pillow.UnidentifiedImageError) else f" ({one_line(cause)})"
            )
            raise FitnessError(f"{self.where}: no picture in {', '.join(FORMATS)}{why}") from cause
        width, height = image.size
        if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
            raise FitnessError(
                f"{self.where}: a picture of {width} x {height} pixels; a side has at most "
                f"{MAX_SIDE}, and all at most "
                f"{MAX_PIXELS >> 20} million"
            )
        return image


@dataclass(frozen=True)
class Example:
    """Problem with its answer.

    Attributes:
        prompt: The text that the model is given, with the data's template filled in.
        answer: The text that counts as right.
        id: Origin of the example; named in every complaint about it.
        chat: Whether the prompt is one message of a user, to be wrapped in the tokenizer's chat
            template.
        system: The system message of such a chat.
        choices: Texts to choose from, the answer among them, where the data says so.
        pictures: The pictures that go with the prompt.
        content: The record's own text in the prompt, without the template's: what two examples are
            the same problem by. The whole prompt where it is empty.
        head: The name of the head that it is for, where models have several.
        source: The name of the source that it belongs to, where the task compares models with a
            source.
        weight: Factor of its score in the fitness.
        gloss: What the problem says, in a language that readers of the published model know; no
            model sees it.
        shots: Other problems with their answers, which the model is given before the prompt.
        made: Whether the prompt was made of another one, by exchanging or joining words.
        columns: Other fields of the record, for reward functions.
    """

    prompt: str
    answer: str
    id: str = ""
    chat: bool = False
    system: str | None = None
    choices: tuple[str, ...] = ()
    pictures: tuple[Picture, ...] = ()
    content: str = dataclasses.field(default="", compare=False, repr=False)
    head: str = ""
    source: str = ""
    weight: float = 1.0
    gloss: str = dataclasses.field(default="", compare=False, repr=False)
    shots: tuple[Shot, ...] = dataclasses.field(default=(), repr=False)
    made: bool = dataclasses.field(default=False, compare=False, repr=False)
    columns: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False, repr=False)


def by_source(examples: Iterable[Example]) -> dict[str, list[Example]]:
    """Group examples by the source that they belong to."""
    groups = dict[str, list[Example]]()
    for example in examples:
        groups.setdefault(example.source, []).append(example)
    return groups


class Shot(NamedTuple):
    """A solved problem in front of a prompt: its own prompt, and all that is written after it."""

    prompt: str
    answer: str
