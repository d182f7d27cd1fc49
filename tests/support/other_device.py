"""A device for tests that is not the processor, ``standin:0`` and ``standin:1``: a GPU's rules.

A tensor of it wraps one of the processor, which does the arithmetic: the values are the
processor's, bit for bit. Like a GPU's, it refuses a tensor of the processor beside it (but numbers
without dimensions in element-wise arithmetic, and indices), a tensor of the device's other number,
``.numpy()`` without ``force``, and a generator of the processor. It draws from random states of its
own, which `torch.manual_seed` seeds and which are not the processor's.

PyTorch reserves a device for backends outside of it, and lets Python fill it. Operations that have
a tensor of the device come to `StandIn.__torch_dispatch__`, below autograd. Operations that make
one from nothing (`torch.zeros`, ``arange``, ...) come to kernels that `_register` gives PyTorch.

It cannot change a tensor's shape in place, hold quantised weights or compute in another dtype under
autocast. PyTorch has no fused attention for it: with ``attn_implementation="eager"`` a forward pass
equals the processor's bits, and gradients do up to the order of their sums. Backward passes run in
the thread that is `standing_in`, as autograd has threads for one device only of a backend that is
written in Python.
"""

import types
from contextlib import contextmanager
from functools import partial

import torch
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "standin"
COUNT = 2
_ATEN = torch.ops.aten
_MOVES = {_ATEN._to_copy.default, _ATEN.copy_.default, _ATEN._copy_from.default}
_INDEXED = {
    _ATEN.index.Tensor, _ATEN.index_put.default, _ATEN.index_put_.default, _ATEN._index_put_impl_.default,  # noqa: E501
    _ATEN._unsafe_index.Tensor,
}  # fmt: skip
_NUMBERS = {_ATEN.fill_.Tensor, _ATEN.masked_fill.Tensor, _ATEN.masked_fill_.Tensor}
_states = {}
_there = [False]
_libraries = []


class StandIn(torch.Tensor):
    """A tensor of the device.

    Attributes:
        inner: The processor's tensor that holds the numbers; views of one tensor have views of one
            memory.
    """

    inner: torch.Tensor
    # what leaves the device is a plain tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner, device):
        """Wrap a tensor of the processor."""
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=torch.device(NAME, device.index or 0),
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        """Compute one operation on the processor's tensors."""
        with (
            torch.inference_mode(False),
            torch.no_grad(),
        ):  # a wrapper made in inference mode could be no view
            if (
                func._can_decompose()
            ):  # inference mode brings these, such as `Tensor.to`, in one piece
                return func.decompose(*args, **(kwargs or {}))
            return _compute(func, args, dict(kwargs or {}))

    @property
    def data(self):  # type: ignore[override]
        """The tensor without its gradient."""
        return self.detach()

    @data.setter
    def data(self, value):
        torch.Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self.inner = value.inner  # type: ignore[attr-defined]

    def new_tensor(self, data, *, dtype=None, device=None, requires_grad=False):
        """Make a tensor here: PyTorch's own takes the current device, which is always number 0."""
        where = self.device if device is None else device
        return torch.tensor(
            data, dtype=dtype or self.dtype, device=where, requires_grad=requires_grad
        )

    def data_ptr(self):
        """Where the numbers lie."""
        return self.inner.data_ptr()

    def untyped_storage(self):
        """The memory, by which others tell whether tensors share it."""
        return self.inner.untyped_storage()

    def numpy(self, *, force=False):
        """The numbers, where they are asked for by force, as of a GPU's tensor."""
        if not force:
            raise TypeError(
                f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() first."
            )
        return self.detach().cpu().numpy()

    def tolist(self):
        """The numbers as Python's."""
        return self.detach().cpu().tolist()

    def __array__(self, dtype=None):
        return self.numpy()

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            copy = StandIn(self.inner.clone(), self.device).requires_grad_(self.requires_grad)
            copy._is_param = getattr(self, "_is_param", False)  # type: ignore[attr-defined]
            memo[id(self)] = copy
        return memo[id(self)]

    def __repr__(self, **more):
        return f"StandIn({self.inner!r}, device={self.device})"

    def __tensor_flatten__(self):
        """Name what is inside: `nn.Module.to` then keeps parameters the objects that they are."""
        return ["inner"], self.device

    @staticmethod
    def __tensor_unflatten__(inner, device, size, stride):
        """Undo `__tensor_flatten__`."""
        return StandIn(inner["inner"], device)


def _compute(func, args, kwargs):
    """Compute an operation on the processor's tensors; its results go to the device of the
    operands.

    Raises:
        RuntimeError: Tensors or a generator of several devices meet.
    """
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    owners = {
        id(tensor.inner if isinstance(tensor, StandIn) else tensor): tensor for tensor in tensors
    }
    device = _device_of(func, tensors)
    if kwargs.get("device") is not None:
        device = kwargs["device"]
        kwargs["device"] = torch.device("cpu")
    if func is _ATEN._copy_from.default:
        func = _ATEN.copy_.default
        args = (args[1], args[0], *args[2:])
    kwargs.pop("pin_memory", None)
    inside = tree_map(
        lambda leaf: leaf.inner if isinstance(leaf, StandIn) else leaf, (args, kwargs)
    )
    if (
        func is _ATEN.histc.default
    ):  # of whole numbers: a GPU's counts them, the processor's does not
        inside = ((inside[0][0].float(), *inside[0][1:]), inside[1])
    with _random_state(func, device, kwargs.get("generator")):
        results = func(*inside[0], **inside[1])
    for tensor in tensors:
        if isinstance(tensor, StandIn) and (tensor.inner.shape, tensor.inner.stride()) != (
            tensor.shape,
            tensor.stride(),
        ):
            raise NotImplementedError(f"{func} changes the shape of a tensor of {NAME} in place")

    def placed(result):
        if not isinstance(result, torch.Tensor) or id(result) in owners:
            return owners.get(id(result), result)
        return StandIn(result, device) if device is not None and device.type == NAME else result

    return tree_map(placed, results)


def _device_of(func, tensors):
    """The device of an operation; raises `RuntimeError` where its tensors are not of one device."""
    devices = list(
        dict.fromkeys(tensor.device for tensor in tensors if isinstance(tensor, StandIn))
    )
    if func in _MOVES:
        return devices[0] if devices else None
    strangers = [tensor for tensor in tensors if not isinstance(tensor, StandIn)]
    if torch.Tag.pointwise in func.tags or func in _NUMBERS:
        strangers = [tensor for tensor in strangers if tensor.dim()]
    if func in _INDEXED:
        strangers = [
            tensor
            for tensor in strangers
            if tensor.dtype not in (torch.long, torch.int, torch.bool)
        ]
    found = [*devices, *dict.fromkeys(tensor.device for tensor in strangers)]
    if len(found) > 1:
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"{found[0]} and {found[1]}! ({func})"
        )
    return found[0] if found else None


@contextmanager
def _random_state(func, device, generator):
    """Let an operation draw from the state of its device."""
    if device is None or device.type != NAME or torch.Tag.nondeterministic_seeded not in func.tags:
        yield
        return
    if generator is not None:
        raise RuntimeError(
            f"Expected a '{NAME}' device type for generator but found '{generator.device}'"
        )
    before = torch.get_rng_state()
    index = device.index or 0
    torch.set_rng_state(_states[index])
    try:
        yield
    finally:
        _states[index] = torch.get_rng_state()
        torch.set_rng_state(before)


def _seed_all(seed):
    """Seed the state of every device; its numbers are others than the processor's."""
    for index in range(COUNT):
        _states[index] = (
            torch.Generator().manual_seed((seed + 7919 * (index + 1)) % 2**63).get_state()
        )


def random_state(device=0):
    """What a device draws its next random numbers from."""
    return _states[device if isinstance(device, int) else device.index or 0]


def _set_random_state(state, device=0):
    _states[device if isinstance(device, int) else device.index or 0] = state


class _Hooks(torch._C._acc.PrivateUse1Hooks):  # type: ignore[name-defined,misc]
    """What PyTorch's C++ asks a backend."""

    def is_available(self):
        return _there[0]

    def has_primary_context(self, index):
        return _there[0]

    def is_built(self):
        return True


@contextmanager
def standing_in():
    """Let the device be there, and this thread run backward passes on it; afterwards there is
    none."""
    _register()
    _seed_all(0)
    _there[0] = True
    try:
        with torch.autograd.set_multithreading_enabled(False):
            yield
    finally:
        _there[0] = False


def _register():
    """Make the device's name and its operations known to this process, once; that cannot be
    undone."""
    if _libraries:
        return
    module = types.ModuleType(f"torch.{NAME}")
    module.is_available = lambda: _there[0]
    module.device_count = lambda: COUNT if _there[0] else 0
    module.is_initialized = lambda: True
    module.current_device = lambda: 0
    module._is_in_bad_fork = lambda: False
    module.manual_seed_all = _seed_all
    module.get_rng_state = random_state
    module.set_rng_state = _set_random_state
    module.get_amp_supported_dtype = lambda: [torch.bfloat16]
    _setup_privateuseone_for_python_backend(NAME, backend_module=module, hook=_Hooks())
    library = torch.library.Library("aten", "IMPL")
    for name, operation in _factories():
        library.impl(name, partial(_compute_flat, operation), "PrivateUse1")
    library.impl("_copy_from", partial(_compute_flat, _ATEN._copy_from.default), "PrivateUse1")
    _libraries.append(library)  # what it registers lives as long as it does


def _compute_flat(func, *args, **kwargs):
    """Compute an operation that PyTorch brings as a call."""
    if kwargs.get("device") is not None and (kwargs["device"].index or 0) >= COUNT:
        raise RuntimeError(f"{kwargs['device']}: invalid device ordinal; there are {COUNT}")
    return _compute(func, args, kwargs)


def _factories():
    """Every operation that makes a tensor on a device from no other tensor."""
    for name in torch._C._dispatch_get_all_op_names():
        space, _, rest = name.partition("::")
        if space != "aten":
            continue
        base, _, overload = rest.partition(".")
        operation = getattr(getattr(_ATEN, base), overload or "default")
        arguments = operation._schema.arguments
        makes = any(argument.name == "device" for argument in arguments)
        if makes and not any("Tensor" in str(argument.type) for argument in arguments):
            yield rest, operation
