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


def tensor(first, last, *shape, dtype="F32"):
    """An entry of a header."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [first, last]}


@pytest.mark.parametrize(
    ("header", "size", "message"),
    [
        ({"a": tensor(0, 8, 2), "b": tensor(4, 12, 2)}, 12, "invalid offset for tensor `b`"),
        ({"a": tensor(0, 8, 2), "b": tensor(12, 20, 2)}, 20, "invalid offset for tensor `b`"),
        ({"a": tensor(4, 12, 2)}, 12, "invalid offset for tensor `a`"),
        ({"a": tensor(0, 8, 3)}, 8, "invalid shape, data type, or offset"),
        ({"a": tensor(0, 8, 2, dtype="BF16")}, 8, "invalid shape, data type, or offset"),
        ({"a": tensor(8, 0, -2)}, 8, "invalid value: integer `-2`"),
        ({"a": tensor(0, 8, 2, dtype="X9")}, 8, "unknown variant `X9`"),
        ({"a": tensor(0, 8, 2)}, 12, "file not fully covered"),
        ({"a": {**tensor(0, 8), "shape": ["2"]}}, 8, "invalid type"),
        ({"a": tensor(0, 8, *[1 << 62] * 50)}, 8, "overflow"),
    ],
)
def test_offsets_that_cannot_be_are_refused(tmp_path, header, size, message):
    """A header whose tensors overlap, leave gaps, or have other sizes than their shapes is refused,
    saying why."""
    with refused(rf"model\.safetensors: not a safetensors file, or damaged: .*{message}"):
        read_header(write(tmp_path / "model.safetensors", header, size))


def test_a_header_that_fills_its_file_is_read(tmp_path):
    """Tensors may stand in any order, be empty or scalars, or hold half bytes."""
    header = {
        "b": tensor(8, 12),
        "a": tensor(0, 8, 2),
        "empty": tensor(8, 8, 0, 4),
        "half": tensor(12, 14, 4, dtype="F4"),
    }
    found = read_header(write(tmp_path / "model.safetensors", header, 14))
    assert {name: list(info.shape) for name, info in found.items()} == {
        name: entry["shape"] for name, entry in header.items()
    }


def test_inspect_tells_of_wrong_offsets(tiny, tmp_path):
    """What only looks at headers refuses a file whose tensors overlap, too."""
    folder = shutil.copytree(tiny / "a", tmp_path / "a")
    header = {"a": tensor(0, 8, 2), "b": tensor(4, 12, 2)}
    write(folder / "model.safetensors", header, 12)
    with refused(r"a: model\.safetensors: .*; download it again"):
        inspect_model(folder)


@pytest.mark.parametrize("name", ["x" * 2_000_000, "\ud800" * 3000, "a\n" * 3000])
def test_a_long_name_does_not_make_a_long_message(name, tmp_path):
    """A tensor's name of two million characters, of halves of surrogate pairs or of lines gives one
    line below the limit."""
    header = {name: tensor(0, 4, 2, dtype="X" + name)}
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
