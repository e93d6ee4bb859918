"""A base class for modules with properties."""

from __future__ import annotations

from torch import Tensor, nn


class ModuleWithProperties(nn.Module):
    """A module in whose properties an AttributeError reports itself.

    torch's modules report it as a missing property instead, because Python then asks `__getattr__` for it.
    """

    def __getattr__(self, name: str) -> Tensor | nn.Module:
        if isinstance(getattr(type(self), name, None), property):
            return object.__getattribute__(self, name)  # computed again, it raises its own error
        return super().__getattr__(name)
