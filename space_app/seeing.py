"""Pictures beside a prompt: files within limits, no address is followed; and what a model's processor makes of them."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Mapping, Sequence
from typing import Any

from texts import SpaceError, counted

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MAX_BYTES = 8 << 20  # of a file
MAX_SIDE = 16_384  # pixels
MAX_PIXELS = 16 << 20
MAX_PICTURES = 8

Pictures = tuple[bytes, ...]  # what the files hold


def checked(pictures: Sequence[bytes]) -> Pictures:
    """Pictures, checked as far as their headers say; raises `SpaceError` where one is none, or larger than the limits."""
    from PIL import Image, UnidentifiedImageError

    if len(pictures) > MAX_PICTURES:
        raise SpaceError(f"There are {len(pictures)} pictures; give {MAX_PICTURES} at most.")
    for data in pictures:
        if len(data) > MAX_BYTES:
            raise SpaceError(f"A picture may have {MAX_BYTES >> 20} MB; this one has more.")
        try:
            width, height = Image.open(io.BytesIO(data), formats=FORMATS).size
        except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as cause:
            raise SpaceError(f"This is no picture in {', '.join(FORMATS)}.") from cause
        if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
            raise SpaceError(
                f"This picture has {width:,} \N{MULTIPLICATION SIGN} {height:,} pixels; a side may have {MAX_SIDE:,}, and all "
                f"{MAX_PIXELS >> 20} million."
            )
    return tuple(pictures)


def of_gallery(shown: Sequence[tuple[str, Any]] | None) -> Pictures:
    """The pictures of a gallery's files; raises `SpaceError`."""
    found = []
    for name, _ in (shown or [])[: MAX_PICTURES + 1]:
        try:
            with open(name, "rb") as file:
                found.append(file.read(MAX_BYTES + 1))
        except (OSError, ValueError) as cause:
            raise SpaceError("The picture is no longer here. Choose it again.") from cause
    return checked(found)


def of_texts(given: object) -> Pictures:
    """The pictures of an API's call, each a text in base64; raises `SpaceError`."""
    texts: Any = given or []
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise SpaceError("The pictures must be a list of texts: each what a file holds, in base64.")
    if any(len(text) > MAX_BYTES * 4 // 3 + 4 for text in texts):
        raise SpaceError(f"A picture may have {MAX_BYTES >> 20} MB; this one has more.")
    try:
        return checked([base64.b64decode(text, validate=True) for text in texts[: MAX_PICTURES + 1]])
    except (binascii.Error, ValueError) as cause:
        raise SpaceError("A picture is not in base64. Addresses are not followed: give what the file holds.") from cause


def sees(config: Mapping[str, Any]) -> bool:
    """Whether a model with this `config.json` is given pictures beside text."""
    if config.get("model_type") == "evo_merged":
        config = config.get("text_config") or {}
    return "text_config" in config and "vision_config" in config


def placed(processor: Any, prompt: str, pictures: Pictures) -> str:
    """The prompt with the model's own mark for each picture: where it stands, or before the text where there is none."""
    mark = getattr(processor, "image_token", None)
    if not isinstance(mark, str) or not mark:
        return prompt
    places = prompt.count(mark)
    if places not in (0, len(pictures)):
        there = counted(len(pictures), "picture")
        raise SpaceError(f"The prompt has {counted(places, 'place')} for pictures ({mark}), and there are {there}.")
    return prompt if places else f"{mark * len(pictures)}\n{prompt}"


def encode(processor: Any, text: str, pictures: Pictures, *, special: bool) -> dict[str, Any]:
    """What the model is given of a text with its pictures, as tensors; raises `SpaceError` where one cannot be decoded."""
    from PIL import Image

    try:
        images = [Image.open(io.BytesIO(data), formats=FORMATS).convert("RGB") for data in checked(pictures)]
    except (OSError, ValueError, SyntaxError) as cause:
        raise SpaceError("The picture is damaged: it cannot be decoded.") from cause
    found = dict(processor(text=[text], images=[images], add_special_tokens=special, return_tensors="pt"))
    found.pop("attention_mask", None)
    return found


def on(model: Any, seen: Mapping[str, Any]) -> dict[str, Any]:
    """What a model is given of pictures, where it is, and in its dtype."""
    return {name: value.to(model.device, model.dtype if value.is_floating_point() else None) for name, value in seen.items()}


def longer(seen: Mapping[str, Any], length: int, wanted: int) -> dict[str, Any]:
    """The same for more or fewer tokens of text, where it has a value for each."""
    import torch

    pad = {name: value for name, value in seen.items() if tuple(value.shape) == (1, length)}
    return {**seen, **{name: torch.nn.functional.pad(value, (0, wanted - length)) for name, value in pad.items()}}


def give_text(model: Any, other: Any) -> None:
    """Put a plain language model into one that sees, in place of its own; of the vocabulary the tokens that both have.

    Raises:
        SpaceError: They do not fit.
    """
    import torch

    into, own = dict(model.get_decoder().named_parameters()), dict(other.get_decoder().named_parameters())
    into["head"], own["head"] = (each.get_output_embeddings().weight for each in (model, other))
    with torch.no_grad():
        for name, target in into.items():
            tensor = own.get(name)
            if tensor is None or tensor.shape[1:] != target.shape[1:]:
                raise SpaceError("A language model that is not alike cannot be put into the one that sees.")
            rows = min(len(target), len(tensor))
            target[:rows].copy_(tensor[:rows])
