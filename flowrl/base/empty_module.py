"""Modules that are built on the meta device, and get their weights one by one."""

from __future__ import annotations

from collections.abc import Iterable

import torch


def is_empty(module: torch.nn.Module) -> bool:
    """Whether a module, or a part of it, has no weights yet."""
    return any(parameter.is_meta for parameter in module.parameters())


class EmptyModule:
    """A module without weights: what it still lacks, and where each belongs.

    Raises ValueError for a buffer without values that no file holds, as it is not part of the state dict.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self._places: dict[int, list[tuple[torch.nn.Module, str]]] = {}  # of weights that are tied, several
        for part in module.modules():
            for name, tensor in (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)):
                if tensor.is_meta:
                    self._places.setdefault(id(tensor), []).append((part, name))
        self._lacks = {name: tensor for name, tensor in module.state_dict(keep_vars=True).items() if tensor.is_meta}
        for name, buffer in module.named_buffers():
            if buffer.is_meta and name not in self._lacks:
                raise ValueError(
                    f"the buffer {name} of an empty module has no values, and is not in its state dict; build the "
                    "module within accelerate.init_empty_weights(include_buffers=False)"
                )

    def is_parameter(self, name: str) -> bool:
        """Whether what the module lacks by this name is a parameter, not a buffer."""
        return isinstance(self._lacks.get(name), torch.nn.Parameter)

    def put(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Have the module own a tensor, a parameter that needs no gradient where one belongs; returns what it owns.

        Raises ValueError when the module lacks no tensor of that name and shape.
        """
        if name not in self._lacks:
            raise ValueError(f"{name} is not a tensor that the module lacks, or was given before")
        wanted = self._lacks[name]
        if tensor.shape != wanted.shape:
            raise ValueError(f"{name} must have shape {list(wanted.shape)}, got {list(tensor.shape)}")
        owned = tensor
        if isinstance(wanted, torch.nn.Parameter):
            owned = torch.nn.Parameter(tensor, requires_grad=False)
        for part, leaf in self._places[id(wanted)]:
            setattr(part, leaf, owned)
        self._lacks = {key: other for key, other in self._lacks.items() if other is not wanted}
        return owned

    def check_full(self) -> None:
        """Raise ValueError when a tensor is lacking."""
        if self._lacks:
            raise ValueError(f"{min(self._lacks)} was not given ({len(self._lacks)} such)")


def fill(module: torch.nn.Module, weights: Iterable[tuple[str, torch.Tensor]], device: torch.device) -> None:
    """Put weights, by their names in the state dict, in a module without any, and have all of it on a device.

    Each goes to the device when it comes, so that the host holds one at a time where the device is another. Raises
    ValueError when they are not those of the module.
    """
    empty = EmptyModule(module)
    for name, tensor in weights:
        empty.put(name, tensor.to(device))
    empty.check_full()
    module.to(device)  # buffers that have values from the start
