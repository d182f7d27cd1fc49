"""Files of weights written as a stream: the same bytes in any order of work, whole or not there,
and kept after a stop."""

import math
import threading
import time

import numpy as np
import pytest
import torch
from refused import refused
from safetensors.numpy import load_file

from hf_evomerge.checkpoints.headers import TensorInfo
from hf_evomerge.checkpoints.shards import write_shards
from hf_evomerge.checkpoints.writer import _is_finite
from hf_evomerge.errors import EvoMergeError

TENSORS = {f"t{n}": TensorInfo("F32", (n, 5)) for n in (3, 1, 0, 2, 4)}
SIZE = sum(info.bytes for info in TENSORS.values())


def values(name):
    """What a tensor holds."""
    info = TENSORS[name]
    return np.arange(info.numel, dtype=np.float32).reshape(info.shape) + info.shape[0]


class Producer:
    """Makes the tensors in two pieces and remembers which; may be slow with some, and fail at
    one."""

    def __init__(self, fail="", slow=""):
        self.fail = fail
        self.slow = slow
        self.made = []
        self.threads = set()

    def __call__(self, name, write):
        """Make one tensor."""
        self.threads.add(threading.get_ident())
        if name == self.slow:
            time.sleep(0.1)
        if name == self.fail:
            raise OSError("disk full")
        data = values(name).tobytes()
        write(data[:4])
        write(memoryview(data)[4:])
        self.made.append(name)


def files(folder):
    """The bytes of every file."""
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


@pytest.mark.parametrize("size", [1000, 70, 1])
def test_threads_do_not_matter(tmp_path, size):
    """Any number of threads, the first tensor finished last, writes the same bytes, which
    safetensors reads back."""
    for threads in (1, 3):
        folder = tmp_path / str(threads)
        folder.mkdir()
        producer = Producer(slow="t3")
        write_shards(folder, TENSORS, producer, max_size=size, threads=threads)
        assert sorted(producer.made) == sorted(TENSORS)
    assert files(tmp_path / "1") == files(tmp_path / "3")
    found = {}
    for file in (tmp_path / "3").glob("*.safetensors"):
        found |= load_file(file)
    assert all(np.array_equal(found[name], values(name)) for name in TENSORS)
    assert (tmp_path / "3" / "model.safetensors.index.json").exists() == (size < SIZE)
    assert all(not name.startswith(".") and not name.endswith(".part") for name in files(folder))


def test_several_threads_work(tmp_path):
    """With more than one thread, another thread goes on while one is busy."""
    producer = Producer(slow="t3")
    write_shards(tmp_path, TENSORS, producer, max_size=1000, threads=2)
    assert len(producer.threads) == 2
    assert producer.made[-1] == "t3"


def stopped(folder):
    """Leave what a write leaves that fails at its second file."""
    with pytest.raises(OSError, match="disk full"):
        write_shards(folder, TENSORS, Producer(fail="t2"), max_size=80)


def test_what_was_finished_is_kept(tmp_path):
    """After a failure the finished files are there and are not made again; the unfinished one does
    not have its name."""
    folder = tmp_path / "stopped"
    fresh = tmp_path / "fresh"
    for each in (folder, fresh):
        each.mkdir()
    stopped(folder)
    assert [file.name for file in folder.glob("*.safetensors")] == [
        "model-00001-of-00003.safetensors"
    ]
    producer = Producer()
    done = []
    write_shards(folder, TENSORS, producer, max_size=80, done=done.append)
    assert producer.made == ["t2", "t4"]
    assert sum(done) == SIZE
    write_shards(fresh, TENSORS, Producer(), max_size=80)
    assert files(folder) == files(fresh)


@pytest.mark.parametrize("damage", ["short", "long", "other"])
def test_a_damaged_file_is_made_again(tmp_path, damage):
    """A kept file that lost a byte, gained one, or holds another tensor is not trusted."""
    stopped(tmp_path)
    file = tmp_path / "model-00001-of-00003.safetensors"
    whole = file.read_bytes()
    broken = {"short": whole[:-1], "long": whole + b"x", "other": whole.replace(b"t3", b"u3")}
    file.write_bytes(broken[damage])
    producer = Producer()
    write_shards(tmp_path, TENSORS, producer, max_size=80)
    assert producer.made == ["t3", "t1", "t0", "t2", "t4"]
    assert file.read_bytes() == whole


def test_a_tensor_of_another_length_is_an_error(tmp_path):
    """A tensor that turns out shorter than announced does not become a file."""
    with refused("t3: 4 bytes were made, 60 were announced", EvoMergeError):
        write_shards(tmp_path, TENSORS, lambda name, write: write(b"four"), max_size=1000)
    assert not list(tmp_path.glob("*.safetensors"))


DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_finite_is_exact(dtype):
    """Numbers up to the dtype's largest are finite, however many there are; one that is infinite or
    NaN is found anywhere."""
    largest = torch.finfo(dtype).max
    fine = (
        torch.tensor([largest, -largest, 0.0, -0.0, largest, 1.0, -largest])
        .double()
        .clamp(-largest, largest)
        .to(dtype)
    )
    assert _is_finite(fine)
    assert _is_finite(fine[:0])
    # this one has no infinity
    others = [math.nan] if dtype.itemsize == 1 else [math.nan, -math.nan, math.inf, -math.inf]
    for position in range(fine.numel()):
        for other in others:
            damaged = fine.clone()
            damaged[position] = other
            assert not _is_finite(damaged)
