"""Headers and indexes of safetensors files that say what is not so, and messages that somebody
else's file makes long."""

import json
import shutil
import struct

import pytest
from refused import refused

from hf_evomerge.checkpoints.headers import read_header
from hf_evomerge.checkpoints.inspect import inspect_model
from hf_evomerge.errors import MAX_MESSAGE, EvoMergeError, SourceError, one_line


def write(file, header, size):
    """A safetensors file with any header and so many bytes of tensors."""
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(size))
    return file


def header_of(text):
    """A header: ``NAME DTYPE FIRST LAST SHAPE ...; ...``."""
    entries = {}
    for entry in text.split("; "):
        name, dtype, *numbers = entry.split()
        first, last, *shape = map(int, numbers)
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [first, last]}
    return entries


@pytest.mark.parametrize(
    ("text", "size", "message"),
    [
        ("a F32 0 8 2; b F32 4 12 2", 12, "invalid offset for tensor `b`"),
        ("a F32 0 8 2; b F32 12 20 2", 20, "invalid offset for tensor `b`"),
        ("a F32 4 12 2", 12, "invalid offset for tensor `a`"),
        ("a F32 0 8 3", 8, "invalid shape, data type, or offset"),
        ("a BF16 0 8 2", 8, "invalid shape, data type, or offset"),
        ("a F32 8 0 -2", 8, "invalid value: integer `-2`"),
        ("a X9 0 8 2", 8, "unknown variant `X9`"),
        ("a F32 0 8 2", 12, "file not fully covered"),
        (f"a F32 0 8{' 4611686018427387904' * 50}", 8, "overflow"),
    ],
)
def test_offsets_that_cannot_be_are_refused(tmp_path, text, size, message):
    """A header whose tensors overlap, leave gaps, or have other sizes than their shapes is refused,
    saying why."""
    with refused(rf"model\.safetensors: not a safetensors file, or damaged: .*{message}"):
        read_header(write(tmp_path / "model.safetensors", header_of(text), size))


def test_a_shape_of_words_is_refused(tmp_path):
    """A shape is a list of numbers."""
    header = {"a": {"dtype": "F32", "shape": ["2"], "data_offsets": [0, 8]}}
    with refused("damaged: .*invalid type"):
        read_header(write(tmp_path / "model.safetensors", header, 8))


def test_a_header_that_fills_its_file_is_read(tmp_path):
    """Tensors may stand in any order, be empty or scalars, or hold half bytes."""
    header = header_of("b F32 8 12; a F32 0 8 2; empty F32 8 8 0 4; half F4 12 14 4")
    found = read_header(write(tmp_path / "model.safetensors", header, 14))
    assert {name: list(info.shape) for name, info in found.items()} == {
        name: entry["shape"] for name, entry in header.items()
    }


def test_inspect_tells_of_wrong_offsets(tiny, tmp_path):
    """What only looks at headers refuses a file whose tensors overlap, too."""
    folder = shutil.copytree(tiny / "a", tmp_path / "a")
    write(folder / "model.safetensors", header_of("a F32 0 8 2; b F32 4 12 2"), 12)
    with refused(r"a: model\.safetensors: .*; download it again"):
        inspect_model(folder)


@pytest.mark.parametrize("name", ["x" * 2_000_000, "\ud800" * 3000, "a\n" * 3000])
def test_a_long_name_does_not_make_a_long_message(name, tmp_path):
    """A tensor's name of two million characters, of halves of surrogate pairs or of lines gives one
    line below the limit."""
    header = {name: {"dtype": f"X{name}", "shape": [2], "data_offsets": [0, 4]}}
    with pytest.raises(SourceError) as caught:
        read_header(write(tmp_path / "model.safetensors", header, 4))
    message = str(caught.value)
    assert len(message) < 500
    assert message.encode()
    assert "\n" not in message
    assert message.endswith("download it again")


def test_every_message_is_cut_in_one_place():
    """Whatever is put into an error of the package, its message is one line that can be written,
    with its beginning and end."""
    message = str(EvoMergeError("begin\n" + "é\udcff" * 10**6 + " end"))
    assert len(message) <= MAX_MESSAGE
    assert message.encode()
    assert message.startswith("begin é")
    assert message.endswith("end")
    assert one_line("short  text\n") == "short text"
    assert one_line(ValueError()) == "ValueError"
    assert [len(one_line("x" * size, 20)) for size in (19, 20, 21, 1000)] == [19, 20, 20, 20]
