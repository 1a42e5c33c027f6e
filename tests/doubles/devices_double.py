"""Several devices where there is one: tensors of the CPU that say they lie on a GPU.

While `SeveralDevices` is active, tensors made for "cuda:N" are the CPU's and remember N, results
lie where their arguments do, and an operator whose arguments lie on two devices is refused, as
CUDA refuses it. Scalars may meet anything.
"""

from __future__ import annotations

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

_DEVICE_OF = torch.Tensor.device.__get__
_MOVES = (torch.Tensor.to, torch.Tensor.copy_)
_CPU = torch.device("cpu")


def place_of(tensor):
    return tensor.__dict__.get("place", _CPU)


def placed(tensor, device):
    """The same tensor as if it lay on a device."""
    tensor.place = torch.device(device)
    return tensor


class SeveralDevices(TorchFunctionMode):
    def __torch_function__(self, func, _types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func == _DEVICE_OF:
            return place_of(args[0])
        if func is torch.Tensor.pin_memory:
            return args[0].clone()
        wanted = kwargs.get("device")
        if func is torch.Tensor.to:
            wanted = next((one for one in args[1:] if isinstance(one, torch.device)), wanted)
            args = tuple(_CPU if isinstance(one, torch.device) else one for one in args)
        if "device" in kwargs:
            kwargs["device"] = _CPU
        tensors = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
        places = {place_of(one) for one in tensors if one.dim() > 0}
        if func not in _MOVES and len(places) > 1:
            raise AssertionError(f"{func.__name__} over {sorted(map(str, places))}")
        found = func(*args, **kwargs)
        where = torch.device(wanted) if wanted is not None else None
        if where is None and tensors:
            where = place_of(tensors[0]) if not places else next(iter(places))
            where = place_of(tensors[0]) if func is torch.Tensor.copy_ else where
        if where is not None:
            for one in tree_leaves(found):
                if isinstance(one, torch.Tensor):
                    # What is moved is another tensor, even where the CPU makes no copy.
                    one.place = where
        return found
