"""Links in a model folder that lead out of it: what is behind them is neither read nor copied."""

import os
import shutil

import pytest
from recipes import merge_of
from refused import refused

from hf_evomerge.building.build import build_model
from hf_evomerge.checkpoints.lora import Adapter
from hf_evomerge.checkpoints.model_folder import copy_files
from hf_evomerge.checkpoints.open import open_source
from hf_evomerge.errors import EvoMergeError


@pytest.fixture
def folder(tiny, tmp_path):
    """A model folder that a test may change, beside a file that is nobody's business."""
    (tmp_path / "secret").write_text('{"key": 1}')
    return shutil.copytree(tiny / "a", tmp_path / "a")


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "model.safetensors", "config.json", "chat_template.jinja", "own.py"]
)
@pytest.mark.parametrize("relative", [True, False])
def test_a_link_out_of_a_model_folder_is_refused(folder, name, relative):
    """Whatever a link out of the folder stands for, a source with it is refused by the link's name
    and what it leads to."""
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to("../secret" if relative else folder.parent / "secret")
    with refused(rf"{name}: a link to .*secret, which is not in "):
        open_source(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "model.safetensors", "config.json", "own.py"])
def test_a_pipe_in_a_model_folder_is_refused(folder, name):
    """What is neither file nor folder is refused by name: whoever opened it would wait for ever."""
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with refused(rf"{name}: a pipe or a device"):
        open_source(folder)


@pytest.mark.parametrize(
    "name",
    ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors.index.json"],
)
def test_a_file_of_gigabytes_is_not_read(folder, name):
    """A sparse file takes no room on the disk, and twice its size in memory where it is read."""
    with (folder / name).open("ab") as file:
        file.truncate(1 << 40)
    with refused(rf"{name}: 1,099,511,627,776 bytes, where no model has more than"):
        open_source(folder)


@pytest.mark.parametrize("text", ["", "5", "[" * 200_000])
def test_a_tokenizer_that_is_none_is_not_copied(folder, tmp_path, text):
    """The merge would be whole, and load nowhere."""
    (folder / "tokenizer.json").write_text(text)
    with refused(r"tokenizer\.json holds no tokenizer: .*download it again"):
        build_model(merge_of(folder, folder), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_linked_folder_of_templates_is_refused(folder, tmp_path):
    """The subfolder of chat templates may not be a link out of the folder either, nor hold one."""
    templates = folder / "additional_chat_templates"
    (tmp_path / "other").mkdir()
    templates.symlink_to("../other")
    with refused("additional_chat_templates: a link to"):
        open_source(folder)
    templates.unlink()
    templates.mkdir()
    (templates / "x.jinja").symlink_to("../../secret")
    with refused(r"x\.jinja: a link to"):
        open_source(folder)


def test_a_link_is_not_copied(folder, tmp_path):
    """A link that appears after the source was opened is not followed when the companions are
    copied."""
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").symlink_to("../secret")
    (tmp_path / "out").mkdir()
    with refused(r"tokenizer\.json: a link to", EvoMergeError):
        copy_files(folder, tmp_path / "out")
    assert not (tmp_path / "out" / "tokenizer.json").exists()


def test_an_adapter_behind_a_link_is_refused(tmp_path):
    """An adapter's folder is under the same rule as a model's."""
    (tmp_path / "adapter").mkdir()
    (tmp_path / "secret").write_text("{}")
    (tmp_path / "adapter" / "adapter_config.json").symlink_to("../secret")
    with refused(r"adapter_config\.json: a link to"):
        Adapter.open(str(tmp_path / "adapter"))


def test_links_that_stay_inside_are_followed(folder, tmp_path):
    """A link to another file of the folder is read, and so is a folder that is itself reached
    through a link."""
    (folder / "model.safetensors").rename(folder / "weights")
    (folder / "model.safetensors").symlink_to("weights")
    (tmp_path / "named").symlink_to(folder)
    (folder / "logs").symlink_to("..")  # never read
    assert open_source(tmp_path / "named").tensors


@pytest.mark.parametrize("escapes", ["no", "shared", "blob", "blobs"])
def test_the_hubs_own_cache_is_read(folder, tmp_path, escapes):
    """In a snapshot of the Hub's cache links into its blobs are files like others; blobs that lead
    further are refused."""
    snapshot = tmp_path / "models--u--m" / "snapshots" / "0123"
    blobs = tmp_path / "models--u--m" / "blobs"
    if escapes == "shared":  # with Xet, all repositories of the cache share their blobs
        blobs = tmp_path / "blobs" / "9e"
    snapshot.mkdir(parents=True)
    blobs.mkdir(parents=True)
    for number, file in enumerate(sorted(folder.iterdir())):
        shutil.copyfile(file, blobs / str(number))
        (snapshot / file.name).symlink_to(os.path.relpath(blobs / str(number), snapshot))
    if escapes in ("no", "shared"):
        out = tmp_path / "out"
        out.mkdir()
        assert open_source(snapshot).tensors
        copy_files(snapshot, out)
        assert (out / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
        return
    if escapes == "blob":
        (blobs / "0").unlink()
        (blobs / "0").symlink_to(tmp_path / "secret")
    else:
        blobs.rename(tmp_path / "elsewhere")
        blobs.symlink_to("../elsewhere")
    with refused("a link to"):
        open_source(snapshot)
