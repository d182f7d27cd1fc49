"""Pictures beside a prompt: read within limits, and handed to a model as its processor makes them.

No address is followed, and no file outside the data's folder is read. Knows nothing of tasks. torch
is imported where a picture is.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FitnessError, SourceError, told
from .example import MAX_BYTES, Example, Picture

if TYPE_CHECKING:
    import torch


def read_pictures(value: Any, where: str, folder: Path | None) -> tuple[Picture, ...]:
    """The pictures of a record's field, checked as far as their headers say.

    Args:
        value: A picture or a list of them, none empty: bytes, an image of Pillow, a column's
            mapping with ``bytes`` or ``path``, or the name of a file.
        where: The record, for complaints.
        folder: Where files with relative names are, and all must be; None: any file of a mapping's,
            and no other.

    Raises:
        FitnessError: A picture is missing, is an address, outside the folder, larger than the
            limits, or none.
    """
    values = value if isinstance(value, list | tuple) else [value]
    if not values:
        raise FitnessError(f"{where}: the list of pictures is empty")
    pictures = tuple(_picture(one, where, folder) for one in values)
    for picture in pictures:
        picture.open()
    return pictures


def _picture(value: Any, where: str, folder: Path | None) -> Picture:
    if isinstance(value, Mapping) and value.get("bytes") is not None:
        value = value["bytes"]
    elif isinstance(value, Mapping) and isinstance(value.get("path"), str):
        if folder is None:
            return _file(value["path"], f"{where}: {value['path']}")
        value = value["path"]
    if isinstance(value, bytes | bytearray):
        return Picture(bytes(value), where)
    if isinstance(value, str):
        _check_address(value, where)
        if folder is None:
            raise FitnessError(f"{where}: {value!r:.80} is a name; give the picture itself")
        from ..checkpoints.inside import (
            check_inside,
        )  # the Space, which opens no files by name, has no checkpoints

        try:
            check_inside(folder, folder / value)
        except (SourceError, ValueError) as cause:  # no name has a zero byte in it
            raise FitnessError(
                f"{where}: {value!r:.80} is not in {folder}, where the data is; put it there"
            ) from cause
        return _file(str(folder / value), f"{where}: {value}")
    if hasattr(value, "save") and hasattr(value, "size"):
        stream = io.BytesIO()
        value.save(stream, format="PNG")
        return Picture(stream.getvalue(), where)
    raise FitnessError(f"{where}: neither a picture nor the name of one (found {value!r:.80})")


def _check_address(name: str, where: str) -> None:
    if "://" in name or name.startswith("data:"):
        raise FitnessError(
            f"{where}: {name!r:.80} is an address, and none is followed; give a file, or bytes"
        )


def _file(name: str, where: str) -> Picture:
    _check_address(name, where)
    if os.path.isdir(name):
        raise FitnessError(f"{where}: a folder, not a picture; is the field empty?")
    if os.path.exists(name) and not os.path.isfile(name):
        raise FitnessError(f"{where}: a pipe or a device, and no picture")
    with (
        told(FitnessError, (OSError, ValueError), f"{where}: cannot be read: "),
        open(name, "rb") as stream,
    ):
        return Picture(stream.read(MAX_BYTES + 1), where)


# A model that sees wants a run of placeholder tokens for each picture, as many as the picture has
# patches, and the pixels beside them. Only its processor knows both, from text and pictures
# together. So the text of a prompt is remembered by its example when it is encoded, and the batch
# is processed again from these texts to get the pixels; the token ids themselves come from the
# first pass.
class SeeingTokenizer:
    """A processor's tokenizer that also encodes pictures; everything else is the tokenizer's own.

    Args:
        processor: What `AutoProcessor` gives: a processor, whose chat template counts before its
            tokenizer's, or an image processor alone, without a tokenizer.
    """

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.tokenizer: Any = getattr(processor, "tokenizer", None)
        self._images: Any = getattr(
            processor, "image_processor", None if self.tokenizer is not None else processor
        )
        if self._images is None or not hasattr(self._images, "image_mean"):
            raise FitnessError(
                f"a {type(processor).__name__} reads no pictures; name a model first that sees"
            )
        if self.tokenizer is not None and getattr(processor, "chat_template", None):
            self.tokenizer.chat_template = processor.chat_template
        self._texts: dict[Example, str] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["tokenizer"], name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Encode text alone."""
        return self.tokenizer(*args, **kwargs)

    def pictures_of(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """Return a model's inputs for pictures alone, one of each example."""
        if wrong := [example for example in examples if len(example.pictures) != 1]:
            raise FitnessError(
                f"{wrong[0].id}: has {len(wrong[0].pictures)} pictures; one is looked at"
            )
        return dict(
            self._images([example.pictures[0].load() for example in examples], return_tensors="pt")
        )

    def encode_seen(self, text: str, example: Example) -> list[int]:
        """The token ids of a text of an example that has pictures, with as many for each picture as
        the model wants."""
        return list(map(int, self._processed([text], [example])["input_ids"][0]))

    def remember(self, text: str, example: Example) -> None:
        """Keep the text of an example's prompt for `seen`."""
        self._texts[example] = text

    def seen(
        self, examples: Sequence[Example], lengths: Sequence[int], width: int, *, left: bool
    ) -> dict[str, torch.Tensor]:
        """Return a model's inputs beside the token ids of a batch.

        Args:
            examples: The examples of its rows.
            lengths: Tokens of each prompt.
            width: Tokens of a row.
            left: Whether padding stands on the left; on the right an answer may follow the prompt.
        """

        found = self._processed(
            [self._texts[example] for example in examples],
            examples,
            return_tensors="pt",
            padding=True,
        )
        shape = found.pop("input_ids").shape
        found.pop("attention_mask", None)
        inputs: dict[str, torch.Tensor] = {}
        for name, values in found.items():
            if values.shape != shape:
                inputs[name] = values
                continue
            inputs[name] = laid = values.new_zeros(
                len(examples), width
            )  # one for each token, such as its type
            for row, length in enumerate(lengths):
                start = width - length if left else 0
                laid[row, start : start + length] = values[row, :length]
        return inputs

    def _processed(
        self, texts: list[str], examples: Sequence[Example], **settings: Any
    ) -> dict[str, Any]:
        images = []
        for example in examples:
            images.append([picture.load() for picture in example.pictures])
        # a chat template writes its own
        settings["add_special_tokens"] = not any(example.chat for example in examples)
        # anything: it is the model's own code that counts pictures in texts
        refuses = f"{examples[0].id}: its processor refuses text and pictures: "
        with told(FitnessError, Exception, refuses):
            return dict(self.processor(text=texts, images=images, padding_side="right", **settings))


def sees(config: Mapping[str, Any]) -> bool:
    """Tell by a ``config.json`` whether a model is given pictures beside text, as the model of a
    path that one is in."""
    if config.get("model_type") == "evo_merged":
        config = config.get("text_config") or {}
    return "text_config" in config and "vision_config" in config


def seen_inputs(
    tokenizer: Any, examples: Sequence[Example], lengths: Sequence[int], width: int, *, left: bool
) -> dict[str, torch.Tensor]:
    """Return what `SeeingTokenizer.seen` gives for examples with pictures; nothing for others.

    Raises:
        FitnessError: Some of the examples have pictures, and some have not.
    """
    blind = [example for example in examples if not example.pictures]
    if len(blind) == len(examples):
        return {}
    if blind:
        raise FitnessError(
            f"{blind[0].id}: has no picture, and others have; give all of them one, or none"
        )
    seen: dict[str, torch.Tensor] = tokenizer.seen(examples, lengths, width, left=left)
    return seen


def placed(inputs: Mapping[str, torch.Tensor], model: Any) -> dict[str, torch.Tensor]:
    """Put inputs onto a model's device, and floating-point ones into its dtype."""
    like = next(model.parameters())
    return {
        name: value.to(like.device, like.dtype if value.is_floating_point() else None)
        for name, value in inputs.items()
    }
