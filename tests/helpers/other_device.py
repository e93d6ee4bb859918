"""A device that this machine does not have: numbers in CPU memory whose tensors say that they are elsewhere.

As on a GPU, an operation on tensors of both devices is an error. The device goes by the name of "meta", the
one without hardware that autograd takes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

NAME = "meta"
# Operations that take tensors of both devices on a GPU, too.
BETWEEN_DEVICES = {"copy_", "_to_copy", "index", "index_put_", "_index_put_impl_"}


class Elsewhere(Tensor):
    """A tensor on the other device.

    Attributes:
        here: its numbers, on the CPU.
    """

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> Elsewhere:
        layout = {"strides": here.stride(), "storage_offset": here.storage_offset()}
        tensor = Tensor._make_wrapper_subclass(cls, here.size(), dtype=here.dtype, device=NAME, **layout)
        tensor.here = here
        return tensor

    def tolist(self) -> list:
        return self.here.tolist()

    def numpy(self, *args: object, **kwargs: object) -> object:
        raise TypeError("a tensor of another device is no array: call cpu() first")

    __array__ = numpy

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        return call(function, args, kwargs or {})


class OtherDevice(TorchDispatchMode):
    """While active, tensors can be made on the other device, and moved to and from it."""

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        return call(function, args, kwargs or {})


def call(function: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Do an operation on the CPU; its results are where it asks for them, or where its tensors are.

    Raises:
        RuntimeError: its tensors are on both devices.
    """
    name = function._schema.name.partition("::")[2]
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    elsewhere = any(isinstance(x, Elsewhere) for x in tensors)
    mixed = elsewhere and any(
        x.dim() and not isinstance(x, Elsewhere) for x in tensors
    )  # numbers may be here
    if mixed and name not in BETWEEN_DEVICES:
        raise RuntimeError(f"{function} of tensors on different devices")
    asked = kwargs.get("device")
    if asked is not None:
        elsewhere, kwargs = torch.device(asked).type == NAME, {**kwargs, "device": "cpu"}
    result = function(*tree_map(_here, args), **tree_map(_here, kwargs))
    if name.endswith("_"):
        return args[0]
    return tree_map(_there, result) if elsewhere else result


def _here(x: Any) -> Any:
    return x.here if isinstance(x, Elsewhere) else x


def _there(x: Any) -> Any:
    return Elsewhere(x) if isinstance(x, Tensor) and not isinstance(x, Elsewhere) else x


@pytest.fixture
def other_device(monkeypatch):
    """Activates the device, whose name it is; what torch does for known devices alone is done on the CPU."""

    def moved(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def made(data: object, *, device: object = None, **kwargs: object) -> Tensor:
            tensor = make(data, **kwargs)
            return tensor if device is None else tensor.to(device)

        return made

    repeat, generator, autocast = torch.repeat_interleave, torch.Generator, torch.autocast
    monkeypatch.setattr(torch, "tensor", moved(torch.tensor))
    monkeypatch.setattr(torch, "as_tensor", moved(torch.as_tensor))
    monkeypatch.setattr(torch, "repeat_interleave", lambda x, n: _there(repeat(_here(x), _here(n))))
    monkeypatch.setattr(torch, "Generator", lambda device="cpu": generator())
    monkeypatch.setattr(torch, "autocast", lambda device, **kwargs: autocast("cpu", **kwargs))
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    with OtherDevice():
        yield NAME
    torch.__future__.set_overwrite_module_params_on_conversion(False)
