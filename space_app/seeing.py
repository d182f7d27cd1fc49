"""Pictures beside a prompt: files within limits, no address is followed; and which models are given
them."""

import base64
import binascii
from collections.abc import Sequence
from typing import Any

from texts import SpaceError, counted

from hf_evomerge.fitness.example import FORMATS, Picture

MAX_BYTES = 8 << 20  # of a file; these two are a stranger's, and the package reads larger ones
MAX_PIXELS = 16 << 20
MAX_PICTURES = 8
KEPT = (600, 3600)  # seconds: how often files of visitors are looked at, and how old they get
TYPES = [f".{kind.lower()}" for kind in (*FORMATS, "jpg")]

Pictures = tuple[Picture, ...]


def checked(files: Sequence[bytes]) -> Pictures:
    """Pictures, checked as far as their headers say; raises `EvoMergeError` where one is none, or
    larger than the limits."""
    if len(files) > MAX_PICTURES:
        raise SpaceError(f"There are {len(files)} pictures; give {MAX_PICTURES} at most.")
    if any(len(data) > MAX_BYTES for data in files):
        raise SpaceError(f"A picture may have {MAX_BYTES >> 20} MB; this one has more.")
    pictures = tuple(Picture(data, "your picture") for data in files)
    for width, height in (picture.open().size for picture in pictures):
        if width * height > MAX_PIXELS:
            size = f"{width:,} \N{MULTIPLICATION SIGN} {height:,} pixels"
            raise SpaceError(f"This picture has {size}; it may have {MAX_PIXELS >> 20} million.")
    return pictures


def of_gallery(shown: Sequence[dict[str, Any]] | None) -> Pictures:
    """The pictures of a gallery's files, of which Gradio has looked that they are a visitor's;
    raises `EvoMergeError`."""
    files = []
    for each in (shown or [])[: MAX_PICTURES + 1]:
        try:
            with open(each["image"]["path"], "rb") as file:
                files.append(file.read(MAX_BYTES + 1))
        except (KeyError, OSError, TypeError, ValueError) as cause:
            raise SpaceError("The picture is no longer here. Choose it again.") from cause
    return checked(files)


def of_texts(given: object) -> Pictures:
    """The pictures of an API's call, each a text in base64; raises `EvoMergeError`."""
    texts: Any = given or []
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise SpaceError("The pictures must be a list of texts: each what a file holds, in base64.")
    if any(len(text) > MAX_BYTES * 4 // 3 + 4 for text in texts):
        raise SpaceError(f"A picture may have {MAX_BYTES >> 20} MB; this one has more.")
    try:
        files = [base64.b64decode(text, validate=True) for text in texts[: MAX_PICTURES + 1]]
    except (binascii.Error, ValueError) as cause:
        raise SpaceError(
            "A picture is not in base64. Addresses are not followed: give what the file holds."
        ) from cause
    return checked(files)


def marked(processor: Any, prompt: str, pictures: Pictures) -> str:
    """The prompt with the model's own mark for each picture: where it stands, or before the text
    where there is none."""
    mark = getattr(processor, "image_token", None)
    if not isinstance(mark, str) or not mark:
        return prompt
    places = prompt.count(mark)
    if places not in (0, len(pictures)):
        there = counted(len(pictures), "picture")
        raise SpaceError(
            f"The prompt has {counted(places, 'place')} for pictures ({mark}), and there are "
            f"{there}."
        )
    return prompt if places else f"{mark * len(pictures)}\n{prompt}"
