"""LoRA adapters as part of a source: what an adapter changes, computed when a tensor is read.
safetensors only.

Knows an adapter's config and tensors, and nothing of merges. LoRA (arXiv:2106.09685) adds
``scaling * B A`` to a weight; DoRA (arXiv:2402.09353) then gives each output a length of its own.
The sums over the rank are made in float32 in a fixed order, one rounding per multiplication and
addition, so that the same adapter gives the same bits on every processor.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import SourceError, told
from .headers import StoredTensor, TensorInfo, parse_mapping, read_header, read_mapping
from .inside import check_folder, held_instead, inner_adapter
from .mapped import MappedFile, map_file
from .replication import KEY, layers_of
from .repository import Repository, find_folder

if TYPE_CHECKING:
    import torch
    from torch import Tensor

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PICTURE_FILE = "pytorch_lora_weights.safetensors"  # diffusers' name, without an adapter_config.json
METADATA = "lora_adapter_metadata"  # in such a file: what an adapter_config.json says, by component
_DEFAULT = 8  # rank and alpha where an adapter's settings name none, as in peft
_MAX_NAMES = 4096  # of modules in a list
# elements of the weight that are changed at a time: they fit the processor's cache
_BLOCK = 1 << 16
# Keys of adapter_config.json that change the arithmetic in ways that are not known here. A method
# that starts from a changed
# base (init_lora_weights: pissa and the like) is refused as well.
_REFUSED = (
    "lora_bias",
    "trainable_token_indices",
    "target_parameters",
    "use_qalora",
    "use_bdlora",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "velora_config",
    "monteclora_config",
    "megatron_config",
)
_MERGED = ("trainable_token_indices", "target_parameters")  # which peft can, for any base
_PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal")


@dataclass
class Change:
    """Change of one weight by an adapter, as names of tensors in the adapter's file.

    Attributes:
        a, b: The factors of a product that is added.
        magnitude: The lengths of DoRA.
        whole: A tensor that takes the weight's place.
        alpha: Factor of the product, times the rank, where the file has it as a tensor.
        module: The module's name in the adapter.
        scaling: Factor of the product, where the config says it.
        transposed: Whether the weight is stored with its inputs as rows.
        is_embedding: Whether the weight is that of embeddings.
    """

    a: str = ""
    b: str = ""
    magnitude: str = ""
    whole: str = ""
    alpha: str = ""
    module: str = ""
    scaling: float = 1.0
    transposed: bool = False
    is_embedding: bool = False

    @property
    def beyond(self) -> str:
        """Reason why it is more than a product that is added to the weight of a linear layer or a
        convolution; empty where it is not."""
        kinds = {
            "DoRA": self.magnitude,
            "a bias": self.whole.endswith("bias"),
            "a whole tensor": self.whole,
            "embeddings": self.is_embedding,
        }
        return next((kind for kind, there in kinds.items() if there), "")


class Adapter:
    """LoRA adapter in peft's layout, or of a diffusion pipeline in diffusers' or kohya's.

    Args:
        folder: Where ``adapter_config.json`` and ``adapter_model.safetensors`` are, or the one file
            of a pipeline's.
        label: Name in messages.
        repository: Where the weights come from if they are not in the folder.
        file: The name of the file of a pipeline's adapter, where it is not
            ``pytorch_lora_weights.safetensors``.
    """

    def __init__(
        self,
        folder: Path,
        label: str,
        repository: Repository | None = None,
        file: str | None = None,
    ) -> None:
        self.folder = folder
        self.label = label
        self.repository = repository
        self._handle: MappedFile | None = None
        if repository is None or folder.is_dir():  # one without small files has none yet
            check_folder(folder)
        peft = file is None and (
            (folder / CONFIG_FILE).is_file()
            or (repository is None and not (folder / PICTURE_FILE).is_file())
        )
        self.config = self._read_config() if peft else {}
        peft = peft and "peft_type" in self.config
        self.file = WEIGHTS_FILE if peft else file or PICTURE_FILE

    @classmethod
    def open(cls, name: str, revision: str | None = None) -> Adapter:
        """Find an adapter: a folder, or a repository on the Hub; raises `SourceError`."""
        label = name if revision is None else f"{name}@{revision}"
        file = None
        if name.endswith(".safetensors"):
            name, _, file = name.rpartition("/")
        folder, repository = find_folder(name or ".", revision)
        return cls(folder, label, repository, file)

    @cached_property
    def tensors(self) -> dict[str, StoredTensor]:
        """The tensors of the adapter's file."""
        file = self.folder / self.file
        if file.is_file():
            return read_header(file, self.label)
        if self.repository is not None:
            return self.repository.headers([self.file])[self.file]
        held = held_instead(self.folder)
        raise SourceError(
            f"{self.label}: no {self.file} ({held}); save the adapter again with safetensors"
        )

    @cached_property
    def layer_order(self) -> list[int]:
        """Layers of the base in the order in which they run; empty where the adapter leaves them as
        they are. Raises `SourceError`."""
        ranges = self.config.get(KEY)
        return layers_of(ranges, f"{self.label}: {CONFIG_FILE}") if ranges else []

    def fingerprint(self) -> str:
        """Key that changes whenever the adapter's files do."""
        if self.repository is not None:
            return f"{self.label} {self.repository.commit}"
        status = (self.folder / self.file).stat()
        return (
            f"{self.label} {status.st_size} {status.st_mtime_ns} "
            f"{json.dumps(self.config, sort_keys=True, default=str)}"
        )

    def download(self) -> None:
        """Fetch the weights if they are on the Hub."""
        if self.repository is not None:
            self.repository.fetch([self.file])

    def changes(
        self,
        tensors: Mapping[str, TensorInfo],
        *,
        tied: bool = False,
        names: Callable[[], Iterable[tuple[str, str]]] = tuple,
    ) -> dict[str, Change]:
        """Map each changed tensor of a checkpoint to its change.

        Args:
            tensors: The checkpoint's tensors.
            tied: Whether its head is its embedding matrix.
            names: Gives other names of the checkpoint's tensors, as pairs of the name in the files
                and another; asked where the adapter names none in the files.

        Raises:
            SourceError: A tensor of the adapter has no place in the checkpoint, another shape, or a
                meaning that is not known.
        """
        found: dict[str, Change] = {}
        changed: dict[str, str] = {}
        flat = {
            f"lora_{name.removesuffix('.weight').replace('.', '_')}": name.removesuffix(".weight")
            for name in tensors
        }
        for key, info in self.tensors.items():
            name = (
                key.removeprefix("base_model.model.")
                .replace(".base_layer.", ".")
                .replace(".modules_to_save.", ".")
            )
            module, part = self._split(name)
            # kohya's scripts number text encoders from 1, and diffusers gives the first no number
            called = re.sub(r"^lora_te1?_", "lora_text_encoder_", module)
            called = re.sub(r"^lora_te(?=\d_)", "lora_text_encoder_", called)
            module = flat.get(called, module)
            if tied and self._unties(name):
                raise SourceError(
                    f"{self.label}: changes {name}, and the base's head is its embedding matrix; "
                    "save the base with a head of its own (tie_word_embeddings: false)"
                )
            target = self._target(name if part is None else f"{module}.weight", tensors, names)
            change = found.setdefault(target, Change())
            if other := getattr(change, part or "whole"):
                raise SourceError(
                    f"{self.label}: {other} and {key} are both for {target}; keep one"
                )
            setattr(change, part or "whole", key)
            if part is None:
                self._check_shape(target, tensors[target].shape, info.shape)
                continue
            change.module = module
            change.is_embedding = "lora_embedding" in name
            changed[target] = module
        if not found:
            raise SourceError(f"{self.label}: {self.file} has no tensors; save the adapter again")
        has_conv1d = any(_is_conv1d(name, tensors) for name in tensors)
        for target, module in changed.items():
            self._complete(found[target], module, target, tensors[target], has_conv1d)
        return found

    def apply(self, change: Change, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """The changed weight, rounded once to this dtype."""
        import torch

        if change.whole:
            weight = self._get(change.whole).to(dtype)
        if not change.a:
            return weight
        left, right = self.factors(change)
        scaling = self._scaling(change, right.shape[0])
        with torch.no_grad():
            if change.magnitude:
                return _dora(weight, left, right, change, self._get(change.magnitude).float()).to(
                    dtype
                )
            return add_product(weight, left, right, dtype, scaling)

    def is_copy(self, change: Change, weight: Tensor) -> bool:
        """Tell whether the whole tensor of a change is the weight that it takes the place of."""
        import torch

        own = self._get(change.whole)
        wide = torch.promote_types(own.dtype, weight.dtype)
        return torch.equal(own.to(wide), weight.to(wide))

    def factors(self, change: Change) -> tuple[Tensor, Tensor]:
        """The factors whose product, times the scaling, is what is added to the stored weight.

        Returns:
            Two contiguous float32 tensors: rows of the weight x rank, and rank x columns.
        """
        a = self._get(change.a).float().flatten(1)
        b = self._get(change.b).float().flatten(1)
        return (
            (a.T.contiguous(), b.T.contiguous())
            if change.transposed
            else (b.contiguous(), a.contiguous())
        )

    def scaled_factors(self, change: Change) -> tuple[Tensor, Tensor]:
        """Multiply the scaling into B, whichever of `factors` that is, so that their product is
        added to the weight.

        Raises:
            SourceError: A number is not finite; times a weight of 0 it would still be none.
        """
        left, right = self.factors(change)
        scaling = self._scaling(change, right.shape[0])
        if change.transposed:
            right = right * scaling
        else:
            left = left * scaling
        if not (left.isfinite().all() and right.isfinite().all()):
            what = f"{change.module}: the adapter has NaN, or infinite numbers"
            raise SourceError(f"{self.label}: {what}; make it again, or leave it out")
        return left, right

    def _scaling(self, change: Change, rank: int) -> float:
        """Return the factor of the product; a pipeline's adapter names it in its file."""
        if change.alpha:
            stored = self._get(change.alpha)
            if stored.numel() != 1 or not stored.isfinite():
                what = f"{stored.tolist()!r:.60}, not a finite number"
                raise SourceError(f"{self.label}: {change.alpha} is {what}")
            return float(stored) / rank
        if self.file == WEIGHTS_FILE:
            return change.scaling
        part, _, module = change.module.partition(".")
        said = self._metadata.items()
        config = {
            key.removeprefix(f"{part}."): value for key, value in said if key.startswith(f"{part}.")
        }
        self._check_settings(config)
        return self._factor(module, rank, config)

    def _factor(self, module: str, rank: int, config: Mapping[str, Any]) -> float:
        """Return the factor of a module's product by an adapter's settings, which name its rank
        too; 1 where there are none."""
        default = _DEFAULT if "peft_type" in config else rank
        if (named := self._number("rank_pattern", "r", module, default, config)) != rank:
            said = "says" if "r" in config else "has no r, which is"
            raise SourceError(
                f"{self.label}: {module} has rank {rank}, {CONFIG_FILE} {said} {named:g}"
            )
        alpha = self._number("alpha_pattern", "lora_alpha", module, default, config)
        return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank

    def close(self) -> None:
        """Let go of the open file."""
        self._handle = None

    @property
    def _opened(self) -> MappedFile:
        if self._handle is None:
            self.download()
            self._handle = map_file(self.folder / self.file)
        return self._handle

    @cached_property
    def _metadata(self) -> dict[str, Any]:
        """Settings of a pipeline's adapter, which are in its file."""
        text = (self._opened.metadata() or {}).get(METADATA, "{}")
        return parse_mapping(text, f"{self.label}: {self.file}: {METADATA}")

    def _get(self, key: str) -> Tensor:
        return self._opened.get_tensor(key)

    def _read_config(self) -> dict[str, Any]:
        if not (self.folder / CONFIG_FILE).is_file() and (hint := inner_adapter(self.folder)):
            raise SourceError(f"{self.label}: no {CONFIG_FILE} in {self.folder}; {hint}")
        config = read_mapping(
            self.folder / CONFIG_FILE, f"{self.label}: no LoRA adapter: {CONFIG_FILE}"
        )
        if config.get("library_name") == "diffusers" and "peft_type" not in config:
            return config  # which names the base of a pipeline's adapter
        if (kind := config.get("peft_type")) != "LORA":
            raise SourceError(
                f"{self.label}: {CONFIG_FILE}: peft_type is {kind!r}; only LORA adapters can "
                "be merged"
            )
        self._check_settings(config)
        for key in ("modules_to_save", "target_modules", "exclude_modules"):
            names = config.get(key) or []
            if not isinstance(names, list | str) or len(names) > _MAX_NAMES:
                what = f"no list of at most {_MAX_NAMES} names"
                raise SourceError(f"{self.label}: {CONFIG_FILE}: {key} is {names!r:.60}, {what}")
        return config

    def _check_settings(self, config: Mapping[str, Any]) -> None:
        """Raise `SourceError` where settings change the arithmetic in ways that are not known
        here."""
        for key in _REFUSED:
            if config.get(key):
                advice = "; merge it with peft" if key in _MERGED else ""
                raise SourceError(
                    f"{self.label}: {CONFIG_FILE}: {key} is {config[key]!r}, which is not "
                    f"supported{advice}"
                )
        start = config.get("init_lora_weights", True)
        if start not in _PLAIN_STARTS:
            raise SourceError(
                f"{self.label}: {CONFIG_FILE}: init_lora_weights is {start!r}, which changes "
                "the base; convert it with peft"
            )

    def _split(self, name: str) -> tuple[str, str | None]:
        """Split a name into a module and the kind of the adapter's matrix for it; None: a tensor
        that is replaced."""
        match = _MATRIX.fullmatch(name)
        if match is not None and "lora_" in name:
            return match[1], _PARTS[match[2].removeprefix("embedding_")]
        if "lora_" in name or "token_adapter" in name:
            raise SourceError(f"{self.label}: the tensor {name} has a meaning that is not known")
        return name, None

    def _unties(self, name: str) -> bool:
        """Tell whether this tensor makes two of a head and embeddings that were one matrix, as the
        adapter runs with the other unchanged."""
        pattern = r"(?:^|\.)(?:wte|embed_(?:tokens|in)|word_embeddings)\.\w+$"
        saved = self.config.get("modules_to_save") or ()
        is_own = "lora_" in name or any(f".{module}." in f".{name}" for module in saved)
        return "lm_head." in name or (is_own and re.search(pattern, name) is not None)

    def _target(
        self,
        name: str,
        tensors: Mapping[str, TensorInfo],
        names: Callable[[], Iterable[tuple[str, str]]],
    ) -> str:
        """The checkpoint's own name of a tensor: the same, with or without the inner model's in
        front, or an older one."""
        if name in tensors:
            return name
        _, _, shorter = name.partition(".")
        # Files of one architecture may or may not have the inner model's name in front, by the
        # class that they were saved from. A name is taken only where exactly one tensor of the
        # checkpoint can be meant.
        near = [there for there in tensors if there == shorter or there.partition(".")[2] == name]
        near = near or [there for there, other in names() if other == name and there in tensors]
        if len(near) == 1:
            return near[0]
        what = "it belongs to another model, or to another class of this one"
        if self.file != WEIGHTS_FILE:
            what += (
                ", or names modules as its trainer does: load it with diffusers, and save it with "
                "save_lora_weights"
            )
        raise SourceError(f"{self.label}: changes {name}, which the model does not have; {what}")

    def _complete(
        self, change: Change, module: str, target: str, info: TensorInfo, has_conv1d: bool
    ) -> None:
        """Check a change that is a product, and find its scaling and its orientation."""
        if not change.a or not change.b:
            raise SourceError(
                f"{self.label}: {module} has only one of the two LoRA matrices; save the "
                "adapter again"
            )
        a = self.tensors[change.a].shape
        b = self.tensors[change.b].shape
        is_window = (
            len(a) == len(b) == len(info.shape) == 4 and b[2:] == (1, 1) and not change.magnitude
        )
        if not is_window and (len(a) != 2 or len(b) != 2 or len(info.shape) != 2):
            raise SourceError(
                f"{self.label}: {module} is no linear layer (LoRA matrices {list(a)} and {list(b)})"
            )
        if not a[0] == b[1] > 0:
            what = f"LoRA matrices of different ranks, or of rank 0 ({list(a)} and {list(b)})"
            raise SourceError(f"{self.label}: {module} has {what}")
        change.scaling = self._factor(module, a[0], self.config)
        said = ""
        if self.config.get("target_modules") not in (None, [], "", "all-linear"):
            said = "" if self._names("target_modules", module) else "target_modules does not name"
        if self._is_in_another_layer(module):
            said = "layers_to_transform leaves out"
        if self._names("exclude_modules", module):
            said = "exclude_modules names"
        if said:
            raise SourceError(
                f"{self.label}: {CONFIG_FILE}: {said} {module}, for which the adapter has "
                "matrices, and peft would leave them out; change it, or take them out"
            )
        # peft goes by the layer's class, and corrects fan_in_fan_out by it. Here shapes tell which
        # way round a weight is, and those of other layers where it is square.
        is_conv1d = has_conv1d if a[1:] == b[:1] else info.shape == (a[1], b[0])
        change.transposed = change.is_embedding or is_conv1d
        is_dora = bool(self.config.get("use_dora"))
        if bool(change.magnitude) != is_dora or (is_dora and change.is_embedding):
            raise SourceError(
                f"{self.label}: {module}: DoRA is read of linear layers alone, which have a "
                f"magnitude where {CONFIG_FILE} says use_dora; merge it with peft"
            )
        self._check_shape(target, info.shape, (a[1], b[0]) if change.transposed else (b[0], *a[1:]))
        if change.magnitude:
            self._check_shape(f"{module} (outputs)", b[:1], self.tensors[change.magnitude].shape)
        if (self.folder / self.file).is_file():  # of one on the Hub that is not downloaded, later
            self._scaling(change, a[0])

    def _names(self, key: str, module: str) -> bool:
        """Tell whether a list of ends of names in the config has this module's, or a pattern all
        of it."""
        given = self.config.get(key) or ()
        if isinstance(given, str):
            return _compiled(given, "{}").fullmatch(module) is not None
        return any(f".{module}".endswith(f".{name}") for name in given)

    # peft finds the number of a module's layer by `layers_pattern`, names such as "layers" or "h";
    # without it, by the first number that follows two names. A module without one is left out.
    def _is_in_another_layer(self, module: str) -> bool:
        """Tell whether ``layers_to_transform`` leaves a module out."""
        layers = self.config.get("layers_to_transform")
        if layers is None:
            return False
        wanted = layers if isinstance(layers, list) else [layers]
        given = self.config.get("layers_pattern") or []
        names = [re.escape(str(each)) for each in ([given] if isinstance(given, str) else given)]
        for name in names or [r"[^.]*"]:
            if found := re.match(rf".*\.{name}\.(\d+)\.", module):
                return int(found[1]) not in wanted
        return True

    def _number(
        self, patterns: str, key: str, module: str, default: float, config: Mapping[str, Any]
    ) -> float:
        value = config.get(key, default)
        given = config.get(patterns)
        if given is not None and not isinstance(given, dict):
            raise SourceError(
                f"{self.label}: {CONFIG_FILE}: {patterns} is {given!r:.60}, not a mapping"
            )
        value = next(
            (found for pattern, found in (given or {}).items() if _compiled(pattern).match(module)),
            value,
        )
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e300:
            raise SourceError(
                f"{self.label}: {CONFIG_FILE}: {key} of {module} is {value!r:.60}, not a "
                "finite number"
            )
        return value

    def _check_shape(self, name: str, here: tuple[int, ...], there: tuple[int, ...]) -> None:
        if here != there:
            raise SourceError(
                f"{self.label}: {name} has shape {list(here)} in the model, but "
                f"{list(there)} in the adapter"
            )


def _is_conv1d(name: str, tensors: Mapping[str, TensorInfo]) -> bool:
    """Tell by its bias whether a weight is of GPT-2's linear layer, which stores inputs as rows."""
    bias = tensors.get(f"{name.removesuffix('.weight')}.bias")
    shape = tensors[name].shape
    return bias is not None and len(shape) == 2 and bias.shape == shape[1:] != shape[:1]


_MATRIX = re.compile(
    r"(.+)\.(?:lora_)?(A|B|down|up|alpha|embedding_A|embedding_B|magnitude_vector)(?:\.weight)?"
)
_PARTS = {
    "A": "a",
    "B": "b",
    "down": "a",
    "up": "b",
    "alpha": "alpha",
    "magnitude_vector": "magnitude",
}


@lru_cache(maxsize=4096)
def _compiled(pattern: str, form: str = r"(.*\.)?({})$") -> re.Pattern[str]:
    """Compile the pattern that the end of a module's name must match, as in peft."""
    where = f"{CONFIG_FILE}: {pattern!r} is no regular expression: "
    with told(SourceError, (re.error, RecursionError, OverflowError), where):
        return re.compile(form.format(pattern))


# W' = W + s B A, with s = alpha / r, or alpha / sqrt(r) with rslora (arXiv:2106.09685,
# arXiv:2312.03732). It is added in float32 and rounded once, to the dtype of the result, rows by
# rows: B A is never held whole.
def add_product(
    weight: Tensor, left: Tensor, right: Tensor, dtype: torch.dtype, scaling: float = 1.0
) -> Tensor:
    """Add ``scaling * left @ right`` to a weight, and round once to this dtype."""
    import torch

    # a convolution is a matrix whose columns are the places of its window
    flat = weight.flatten(1)
    out = torch.empty_like(flat, dtype=dtype, memory_format=torch.contiguous_format)
    for rows, delta in _deltas(left, right, scaling):
        out[rows] = delta.add_(flat[rows]).to(dtype)
    return out.reshape(weight.shape)


def _deltas(left: Tensor, right: Tensor, scaling: float) -> Iterator[tuple[slice, Tensor]]:
    """``scaling * left @ right`` by blocks of rows, each summed over the rank from the first to the
    last."""
    import torch

    step = max(1, _BLOCK // right.shape[1])
    for start in range(0, left.shape[0], step):
        rows = slice(start, min(start + step, left.shape[0]))
        block = left[rows]
        total = torch.zeros(block.shape[0], right.shape[1])
        product = torch.empty_like(total)
        # The sum over the rank is done one rank after the other: a matrix product adds up in an
        # order that depends on library, processor and threads, and the merge would with it.
        for k in range(right.shape[0]):
            torch.mul(block[:, k : k + 1], right[k], out=product)
            total.add_(product)
        yield rows, total.mul_(scaling)


def _dora(weight: Tensor, left: Tensor, right: Tensor, change: Change, magnitude: Tensor) -> Tensor:
    """``m (W + BA) / |W + BA|`` in float32: each output's weights get the length that the adapter
    says."""
    import numpy as np
    import torch

    moved = weight.to(torch.float32, copy=True)
    axis = 0 if change.transposed else 1  # the weights of one output lie along it
    # DoRA (arXiv:2402.09353): W' = m (W + s B A) / |W + s B A|, with one length m and one norm for
    # each output. Squares are summed in float64 while the rows are made, and the division is a
    # second pass.
    squares = np.zeros(moved.shape[1 - axis])
    for rows, delta in _deltas(left, right, change.scaling):
        moved[rows] += delta
        sums = np.square(moved[rows].numpy(), dtype=np.float64).sum(axis=axis)
        if change.transposed:
            squares += sums
        else:
            squares[rows] = sums
    factor = magnitude / torch.from_numpy(np.sqrt(squares).astype(np.float32))
    return moved.mul_(factor if change.transposed else factor[:, None])
