"""What a decoder block adds to the residual stream and what reads it: found on a small random model of the architecture.

Nothing here knows an architecture by its name. What was found is proved by computing it, so a wrong guess is a refusal.

This file travels to the Hub beside the weights: it imports nothing but torch, transformers and the files beside it.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import MODEL_MAPPING, PreTrainedConfig, PreTrainedModel

# Sizes of this and more are divided by the first of these numbers with which the architecture still runs.
_LARGE, _DIVISORS = 256, (16, 8, 4, 2, 1)
_TOLERANCE, _NOTHING = 2e-3, 1e-5
_SCALE = -2.0


class Change(NamedTuple):
    """Change of a weight w: ``(w + offset) * factor - offset``; the offset is 1 where a norm multiplies by 1 + w."""

    factor: float
    offset: float = 0.0


@dataclass
class Layout:
    """How one kind of block, or what stands before or behind the blocks, meets the residual stream.

    Attributes:
        writers: Offset of each parameter that scales what is added to the stream; the last used first.
        branch: Submodule of the block whose output is added last, ``""`` where no other comes before it.
        norms: Offset of each weight of a norm that reads the stream: blind to its size, but not to its sign.
        readers: Weights of linear maps that read the stream without a norm in front.
        unsigned: A norm without a weight that reads the stream, ``""`` where there is none.
        reason: Why scales of the stream cannot be put into the weights, ``""`` where they can.
    """

    writers: dict[str, float] = field(default_factory=dict)
    branch: str = ""
    norms: dict[str, float] = field(default_factory=dict)
    readers: dict[str, float] = field(default_factory=dict)
    unsigned: str = ""
    reason: str = ""

    def changes(self, attention: float, mlp: float, sign: float, reader: float) -> dict[str, Change]:
        """Return the changes of parameters.

        Args:
            attention: The factor of what is added, but by the last branch.
            mlp: The factor of what the last branch adds.
            sign: The factor of the norms that read: 1 or -1.
            reader: The factor of the weights that read without a norm.
        """
        inside = f"{self.branch}."
        changes = {
            name: Change(mlp if self.branch and name.startswith(inside) else attention, offset)
            for name, offset in self.writers.items()
        }
        changes |= {name: Change(sign, offset) for name, offset in self.norms.items()}
        changes |= {name: Change(reader, offset) for name, offset in self.readers.items()}
        return {name: change for name, change in changes.items() if change.factor != 1}


class Layouts(NamedTuple):
    """Layouts of an architecture: of each kind of block, by the names of its parameters, and of what is around them."""

    blocks: dict[frozenset[str], Layout]
    embeddings: Layout
    final: Layout
    layers: str


@contextmanager
def _changed(module: nn.Module, changes: Mapping[str, Change]) -> Iterator[None]:
    """Change parameters for a while."""
    parameters = {name: module.get_parameter(name) for name in changes}
    kept = {name: parameter.data for name, parameter in parameters.items()}
    for name, (factor, offset) in changes.items():
        parameters[name].data = (kept[name] + offset) * factor - offset
    try:
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.data = kept[name]


@contextmanager
def _hooked(modules: Mapping[str, nn.Module], hook: Callable[..., Any]) -> Iterator[None]:
    """Hang a forward hook on modules for a while; it is given the name, the arguments by position and name, and the output."""
    handles = [
        module.register_forward_hook(lambda _, *given, name=name: hook(name, *given), with_kwargs=True)
        for name, module in modules.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _state(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The first tensor among arguments."""
    return next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)


def _scaled(args: tuple[Any, ...], kwargs: dict[str, Any], factor: float) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments whose first tensor is multiplied."""
    state = _state(args, kwargs)
    args = tuple(value * factor if value is state else value for value in args)
    return args, {name: value * factor if value is state else value for name, value in kwargs.items()}


def _distance(one: Tensor, other: Tensor | float) -> float:
    return float((one - other).abs().max())


class _Stage:
    """A part of a model that takes a state and returns one: a block, or what stands before or behind the blocks.

    Args:
        module: What has its parameters.
        run: Computes it for its input times a number.
        names: Modules that may belong to it.
        state: Its input; 0 where it has none.
    """

    def __init__(self, module: nn.Module, run: Callable[[float], Tensor], names: list[str], state: Tensor | float) -> None:
        self.module, self.run, self.state = module, run, state
        self.modules = {name: module.get_submodule(name) for name in names}
        self.calls: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}
        handles = [
            each.register_forward_pre_hook(lambda _, *given, name=name: self._note(name, *given), with_kwargs=True)
            for name, each in self.modules.items()
        ]
        self.output = run(1.0)
        for handle in handles:
            handle.remove()
        self.size = _distance(self.output, state)

    def _note(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.calls.pop(name, None)  # the last use counts
        self.calls[name] = args, kwargs

    def changed(self, changes: Mapping[str, Change], scale: float = 1.0) -> Tensor:
        """The output with changed parameters, for the input times a number."""
        with _changed(self.module, changes):
            return self.run(scale)

    def offset(self, name: str, key: str) -> float:
        """The offset of a parameter: 1 where its module returns something although all that it has is 0."""
        module = self.modules[name]
        if key != "weight" or module.get_parameter(key).dim() != 1:
            return 0.0
        args, kwargs = self.calls[name]
        with _changed(module, {own: Change(0.0) for own, _ in module.named_parameters()}):
            return float(bool(_first(module.forward(*args, **kwargs)).abs().max() > 0))

    def writers(self) -> dict[str, float]:
        """Find the parameters that scale what is added, with their offsets.

        The last used first: one in which the output is a straight line becomes 0, and of what was used before it only that
        is left which adds something in another way.
        """
        zeros: dict[str, Change] = {}
        now = self.output
        for name in reversed(self.calls):
            for key, _ in reversed(list(self.modules[name].named_parameters(recurse=False))):
                offset, parameter = self.offset(name, key), f"{name}.{key}".lstrip(".")
                none = self.changed({**zeros, parameter: Change(0.0, offset)})
                moved = _distance(none, now)
                if moved <= _NOTHING * self.size:
                    continue
                twice = self.changed({**zeros, parameter: Change(2.0, offset)})
                if _distance(none + twice, 2 * now) <= _TOLERANCE * moved:
                    zeros[parameter] = Change(0.0, offset)
                    now = none
        if _distance(now, self.state) > _TOLERANCE * self.size:
            raise ValueError("its blocks do something to the stream that none of their tensors scales")
        return {name: change.offset for name, change in zeros.items()}

    def branch(self, writers: Mapping[str, float]) -> str:
        """The outermost submodule whose output is added last, after that of another; ``""`` where there is none.

        The output is a straight line in the factor of the submodule's, and neither 0 nor the input without it.
        """
        last = next(iter(writers)).split(".")[:-1]
        for depth in range(1, len(last) + 1):
            name = ".".join(last[:depth])
            if name not in self.calls:  # a list of modules
                continue
            outputs = []
            for factor in (0.0, 2.0):
                with _hooked({name: self.modules[name]}, lambda name, args, kwargs, out, by=factor: _with_first(out, _first(out) * by)):
                    outputs.append(self.run(1.0))
            none, twice = outputs
            if _distance(none + twice, 2 * self.output) <= _TOLERANCE * self.size < float(none.abs().max()):
                return name if _distance(none, self.state) > _TOLERANCE * self.size else ""
        return ""

    def read(self, layout: Layout, *, adds: bool) -> None:
        """Find what reads the stream, and prove that scales of the stream can be put into the weights.

        With the input x / c, and the writers divided by c, all is as with the input x but for the stream itself, which is
        divided by c. So a module whose input is divided by c reads the stream; if it is given back what it returned for x,
        the next can be found.

        Args:
            layout: The writers; the rest is filled in.
            adds: Whether the output is the stream, as that of a block is.
        """
        leaves = {name: self.modules[name] for name in self.calls}
        leaves = {name: each for name, each in leaves.items() if not any(part._parameters for part in [*each.modules()][1:])}
        leaves = {name: each for name, each in leaves.items() if name.rpartition(".")[0] not in leaves}
        calls: list[tuple[str, Tensor, Any]] = []

        def note(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            calls.append((name, _state(args, kwargs).clone(), output))

        def answer(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            _, whole, wanted = calls.pop(0)
            given = _state(args, kwargs)
            if _distance(given, whole) <= _TOLERANCE * float(whole.abs().max()) or _distance(
                given * _SCALE, whole
            ) > _TOLERANCE * float(whole.abs().max()):
                return output
            return wanted if self._reads(layout, name, (args, kwargs), _first(wanted), _first(output)) else output

        factor = 1 / _SCALE if adds else 1.0
        with _hooked(leaves, note):
            self.run(_SCALE)
        with _hooked(leaves, answer):
            self.changed(layout.changes(factor, factor, 1.0, 1.0))
        scale = abs(_SCALE) if layout.unsigned else _SCALE
        factor = 1 / scale if adds else 1.0
        proof = self.changed(layout.changes(factor, factor, -1.0 if scale < 0 else 1.0, scale))
        wanted = self.run(scale) * factor
        if not layout.reason and _distance(proof, wanted) > _TOLERANCE * self.size:
            layout.reason = "it computes something else with a scaled stream, whatever its weights are multiplied by"

    def _reads(self, layout: Layout, name: str, given: Any, wanted: Tensor, output: Tensor) -> bool:
        """Fill in how a module reads the stream; False where it hands it on, as dropout does."""
        module, size, (args, kwargs) = self.modules[name], _TOLERANCE * float(wanted.abs().max()), given
        if not module._parameters and _distance(output * _SCALE, wanted) <= size:
            return False
        for found, factor in ((layout.norms, -1.0), (layout.readers, _SCALE)):
            for key, _ in module.named_parameters(recurse=False):
                offset = self.offset(name, key)
                with _changed(module, {key: Change(factor, offset)}):
                    if _distance(_first(module.forward(*args, **kwargs)), wanted) <= size:
                        found[f"{name}.{key}"] = offset
                        return True
        args, kwargs = _scaled(args, kwargs, -_SCALE)
        if _distance(_first(module.forward(*args, **kwargs)), output) <= size:
            layout.unsigned = name
        else:
            layout.reason = f"{name} reads the stream, and is neither a norm nor a linear map"
        return True


def _first(output: Any) -> Any:
    return output[0] if isinstance(output, (tuple, list)) else output


def _with_first(output: Any, state: Any) -> Any:
    return type(output)([state, *output[1:]]) if isinstance(output, (tuple, list)) else state


@lru_cache(maxsize=64)
def _layouts(kind: type[PreTrainedConfig], fields: str) -> Layouts:
    model, name = _small(kind, json.loads(fields))
    ids = _ids()
    seen: dict[str, tuple[Any, Any, Any]] = {}
    blocks = {f"{name}.{number}": block for number, block in enumerate(model.get_submodule(name).children())}
    with _hooked(blocks, lambda name, *call: seen.update({name: call})):
        model(ids, use_cache=False)
    around = [each for each, _ in model.named_modules() if not each.startswith(f"{name}.")]
    first, last = list(blocks)[0], list(blocks)[-1]
    layouts: dict[frozenset[str], Layout] = {}
    for each, block in blocks.items():
        key = frozenset(dict(block.named_parameters()))
        if key in layouts:
            continue
        args, kwargs, _ = seen[each]

        def run(scale: float) -> Tensor:
            scaled, named = _scaled(args, kwargs, scale)
            return _first(block(*scaled, **named))

        stage = _Stage(block, run, [part for part, _ in block.named_modules() if part], _state(args, kwargs))
        layout = layouts[key] = Layout()
        try:
            layout.writers = stage.writers()
            layout.branch = stage.branch(layout.writers)
            stage.read(layout, adds=True)
        except ValueError as e:
            layout.reason = str(e)

    def begin(scale: float) -> Tensor:
        states = []
        with _hooked({first: blocks[first]}, lambda name, args, kwargs, output: states.append(_state(args, kwargs))):
            model(ids, use_cache=False)
        return states[0]

    state = _first(seen[last][2])

    def end(scale: float) -> Tensor:
        with _hooked({last: blocks[last]}, lambda name, args, kwargs, output: _with_first(output, state * scale)):
            return _first(model(ids, use_cache=False).to_tuple())

    embeddings, final = Layout(), Layout()
    try:
        embeddings.writers = _Stage(model, begin, around, 0.0).writers()
    except ValueError as e:
        embeddings.reason = str(e)
    _Stage(model, end, around, state).read(final, adds=False)
    return Layouts(layouts, embeddings, final, name)


def _ids() -> Tensor:
    return torch.arange(3, 15).view(2, 6)


def _small(kind: type[PreTrainedConfig], fields: dict[str, Any]) -> tuple[PreTrainedModel, str]:
    from .layers_evo_merged import find_layers, source_class
    for divisor in _DIVISORS:
        try:
            config = kind.from_dict(_divided(fields, divisor))
            config._attn_implementation = "eager"
            model = source_class(config, MODEL_MAPPING)(config).float().eval()
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(std=parameter.shape[-1] ** -0.5)
                else:
                    parameter.normal_(1.0, 0.1)
            for module in model.modules():
                for each, value in vars(module).items():
                    if "eps" in each and isinstance(value, float):
                        setattr(module, each, 1e-30)
            model(_ids(), use_cache=False)
        except Exception as error:
            cause = error
        else:
            return model, find_layers(model, config.num_hidden_layers)
    raise ValueError(f"a small {kind.model_type!r} cannot be run: {type(cause).__name__}: {cause}")


def _divided(value: Any, by: int) -> Any:
    if isinstance(value, dict):
        return {key: [n // by for n in each] if key == "mrope_section" else _divided(each, by) for key, each in value.items()}
    return value // by if type(value) is int and value >= _LARGE else value
