"""A second device without an accelerator: tensors that say they are on the device "lazy" and are computed on the CPU.

Inside `second_device()` a tensor goes there and comes back as it would to a GPU, and two tensors that are on different
devices cannot be computed with: what puts a table, a mask or a position on the wrong device fails here, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

DEVICE = torch.device("lazy", 0)
MOVING = ("aten::copy_", "aten::_to_copy")
"""Operations that may take tensors of two devices."""


class Elsewhere(torch.Tensor):
    """A tensor on the second device; its numbers are in `here`."""

    here: torch.Tensor

    @staticmethod
    def __new__(cls, here: torch.Tensor) -> Elsewhere:
        layout = {"strides": here.stride(), "storage_offset": here.storage_offset(), "layout": here.layout}
        made = torch.Tensor._make_wrapper_subclass(cls, here.shape, dtype=here.dtype, device=DEVICE, **layout)
        made.here = here
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} outside of second_device()")


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
        there = [each for each in tensors if isinstance(each, Elsewhere)]
        if there and func._schema.name not in MOVING:
            strangers = [each for each in tensors if not isinstance(each, Elsewhere) and each.dim() > 0]
            if strangers:
                raise RuntimeError(f"{func}: expected all tensors to be on the same device, {DEVICE} and cpu")
        wanted = kwargs.get("device")
        goes_there = bool(there) if wanted is None else torch.device(wanted).type == DEVICE.type
        if wanted is None and func._schema.name == "aten::copy_":
            goes_there = isinstance(args[0], Elsewhere)
        if wanted is not None and goes_there:
            kwargs["device"] = torch.device("cpu")
        moved_args, moved = tree_map_only(Elsewhere, lambda each: each.here, (args, kwargs))
        result = func(*moved_args, **moved)
        if not goes_there:
            return result
        known = {id(each.here): each for each in there}
        return tree_map_only(
            torch.Tensor, lambda each: known[id(each)] if id(each) in known else Elsewhere(each), result
        )


class _Making(TorchFunctionMode):
    """What no dispatch mode sees: `torch.tensor(…, device=…)`, made here and moved there, and `tolist`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        wanted = kwargs.get("device")
        if func is torch.Tensor.tolist:
            return func(*tree_map_only(Elsewhere, lambda each: each.here, args))
        if func not in (torch.tensor, torch.as_tensor) or wanted is None or torch.device(wanted).type != DEVICE.type:
            return func(*args, **kwargs)
        return func(*args, **kwargs | {"device": "cpu"}).to(DEVICE)


@contextmanager
def second_device() -> Iterator[torch.device]:
    """Inside, there is a device beside the CPU."""
    with _Mode(), _Making():
        yield DEVICE
