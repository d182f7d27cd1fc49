"""Puts a model into memory: from safetensors only, if it fits, and without running anybody else's
code."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from texts import SpaceError

import hf_evomerge  # noqa: F401  # registers the class of models with a path, so that no code of theirs is run
from hf_evomerge.checkpoints.lora import Adapter
from hf_evomerge.checkpoints.open import open_source
from hf_evomerge.errors import EvoMergeError, one_line
from hf_evomerge.fitness.pictures import SeeingTokenizer, sees
from hf_evomerge.machine import free_memory
from hf_evomerge.recipes.recipe import SourceRef

MAX_SECONDS = 60.0  # of one answer
_ROOM = 1.2  # free memory that loading takes, relative to the size of the files
Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Loaded:
    """A model in memory, with its tokenizer, its processor where it sees, and its adapters."""

    model: Any
    tokenizer: Any
    processor: Any = None
    adapters: Any = None


def load(
    model: str,
    revision: str | None,
    *,
    sees: bool = False,
    adapter: tuple[str, str | None] | None = None,
) -> Loaded:
    """Load a model with an adapter, and its tokenizer, from safetensors only and without the
    repository's code."""
    import torch
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoProcessor,
        AutoTokenizer,
    )

    kind = AutoModelForImageTextToText if sees else AutoModelForCausalLM
    loaded = kind.from_pretrained(
        model,
        dtype="auto",
        use_safetensors=True,
        use_kernels=False,
        revision=revision,
        trust_remote_code=False,
    ).eval()
    if adapter is not None:
        model, revision = adapter  # the tokenizer is there
    encodes = (AutoProcessor if sees else AutoTokenizer).from_pretrained(
        model, revision=revision, trust_remote_code=False
    )
    if torch.cuda.is_available():
        loaded = loaded.to("cuda")
    found = Loaded(loaded, encodes)
    if sees:  # a processor's tokenizer is given its chat template
        found = Loaded(loaded, SeeingTokenizer(encodes).tokenizer, encodes)
    return found if adapter is None else use_adapter(found, adapter)


def use_adapter(loaded: Loaded, adapter: tuple[str, str | None] | None) -> Loaded:
    """Let a model run with one LoRA adapter and without the others, or with none; it is loaded
    where it is not there yet."""
    import torch
    from peft import PeftModel

    if adapter is None:
        loaded.adapters.base_model.disable_adapter_layers()
        return loaded
    name = adapter[0].replace(".", "-")  # no module's name may have dots
    with torch.inference_mode(False):
        if loaded.adapters is None or name not in loaded.adapters.peft_config:
            _ = Adapter.open(*adapter).tensors  # in safetensors alone
            if loaded.adapters is None:
                tuned = PeftModel.from_pretrained(
                    loaded.model, adapter[0], name, revision=adapter[1]
                )
                loaded = replace(loaded, adapters=tuned)  # whose layers are in the model
            else:
                loaded.adapters.load_adapter(adapter[0], name, revision=adapter[1])
        loaded.adapters.base_model.enable_adapter_layers()
        loaded.adapters.set_adapter(name)
    return loaded


def parent_sees(model: str, revision: str | None) -> bool:
    """Tell whether a parent is given pictures beside text, by its config."""
    from transformers import AutoConfig

    return sees(
        AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=False).to_dict()
    )


class LoadedInBackground:
    """Resource that is loaded behind the page: `ready` is set when it is there, or when `error`
    says why it is not."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.error = ""
        self.ready = threading.Event()

    def start(self) -> None:
        """Load beside the page; on ZeroGPU at once, because models must be placed before the first
        call."""
        if zero_gpu():
            self.load()
        else:
            threading.Thread(target=self.load, daemon=True, name="load").start()

    def load(self) -> None:
        """Load; what goes wrong, whatever the files provoke, is one line in `error`."""
        try:
            self._load()
        except Exception as error:  # the page must say it and stay
            self.error = error_line(error, f"{self.name} cannot be loaded")
        self.ready.set()

    def _load(self) -> None:
        raise NotImplementedError


def error_line(error: Exception, failed: str) -> str:
    """An error as a visitor reads it, in one line: an unexpected one after the words for what
    failed."""
    return str(error) if isinstance(error, EvoMergeError) else f"{failed}: {one_line(error)}"


def weights_bytes(model: str, revision: str | None) -> int:
    """The size of a model's weights; raises `EvoMergeError` where there are none in safetensors."""
    stored = open_source(SourceRef(model=model, revision=revision)).stored
    return sum(info.bytes for info in stored.values())


def check_memory(needed: int, name: str) -> None:
    """Raise `SpaceError` where a model of so many bytes does not fit."""
    if not fits(needed):
        raise SpaceError(
            f"{name} needs {needed * _ROOM / 1e9:.1f} GB of memory and "
            f"{free_memory() / 1e9:.1f} GB are free here. "
            "Duplicate this Space on larger hardware to try it."
        )


def fits(needed: int) -> bool:
    """Tell whether there is room for a model of so many bytes."""
    return needed * _ROOM <= free_memory()


def zero_gpu() -> bool:
    """Tell whether this is a Space that gets a GPU for the time of a call."""
    try:
        from spaces.config import Config
    except ImportError:
        return False
    return bool(Config.zero_gpu)


def on_gpu(function: Function) -> Function:
    """The function as ZeroGPU wants it; unchanged elsewhere."""
    try:
        import spaces
    except ImportError:
        return function
    return spaces.GPU(function, duration=int(MAX_SECONDS))
