"""A device that is not the CPU, on machines that have no other: torch's backend for devices of third parties, with
tensors that hold a tensor of the CPU and compute with that.

As on a GPU, an operation on its tensors and on tensors of the CPU is an error, and so is a random generator of the
CPU. What torch allows on a GPU is allowed: numbers without dimensions, indices, and copies between devices.
`install` changes the whole process, and so it is for a process of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "pretended"
_ACROSS = {"aten::copy_", "aten::_to_copy", "aten::_local_scalar_dense"}
_WITH_INDICES = {"aten::index", "aten::index_put_", "aten::_index_put_impl_", "aten::index_put"}
_library: torch.library.Library | None = None


class WrongDevice(RuntimeError):
    """An operation was given tensors of two devices."""


class _Backend(_DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


class PretendedTensor(torch.Tensor):
    """A tensor whose `device` is the pretended one. held: its numbers."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> PretendedTensor:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(NAME, 0),
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(operation, args, kwargs or {})

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.held.__reduce_ex__(protocol)

    def tolist(self) -> Any:
        return self.held.tolist()

    def __format__(self, form: str) -> str:
        return format(self.held, form)

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Pretended({self.held!r})"


def install() -> torch.device:
    """Gives torch the device, for the rest of the process."""
    global _library
    if _library is None:
        _setup_privateuseone_for_python_backend(NAME, _Backend())
        _library = torch.library.Library("_", "IMPL")
        # Operations without a tensor of the device, such as torch.zeros(..., device="pretended").
        _library.fallback(lambda operation, *args, **kwargs: _run(operation, args, kwargs), "PrivateUse1")
        torch.inference_mode = torch.no_grad  # its tensors know no such backend
        torch.tensor = _on_the_device(torch.tensor)
        torch.as_tensor = _on_the_device(torch.as_tensor)
    return torch.device(NAME, 0)


def _on_the_device(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """These two copy from Python's numbers in a way that such a backend cannot take over."""

    def made(data: Any, *, device: Any = None, **options: Any) -> torch.Tensor:
        if device is None or torch.device(device).type != NAME:
            return make(data, device=device, **options)
        return make(data, **options).to(device)

    return made


def _run(operation: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = operation._schema.name
    device = kwargs.get("device")
    _check(name, args, kwargs)
    held = {key: value for key, value in kwargs.items() if key != "device"}
    if device is not None:
        held["device"] = torch.device("cpu")
    plain_args, plain = pytree.tree_map_only(PretendedTensor, lambda tensor: tensor.held, (args, held))
    result = operation(*plain_args, **plain)
    if device is not None and torch.device(device).type == "cpu":
        return result.clone() if name == "aten::_to_copy" else result
    aliases = [argument.alias_info for argument in operation._schema.arguments]
    writes = any(alias is not None and alias.is_write for alias in aliases)
    if name == "aten::copy_" and not isinstance(args[0], PretendedTensor):
        return args[0]
    result = pytree.tree_map_only(torch.Tensor, PretendedTensor, result)
    shares = writes or operation.is_view
    return return_and_correct_aliasing(operation, args, kwargs, result) if shares else result


def _check(name: str, args: Any, kwargs: dict[str, Any]) -> None:
    tensors = [value for value in pytree.tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
    if any(isinstance(value, torch.Generator) for value in pytree.tree_leaves((args, kwargs))):
        raise WrongDevice(f"{name} got a random generator of the CPU")
    if name in _ACROSS:
        return
    if name in _WITH_INDICES and isinstance(args[0], PretendedTensor):
        tensors = [args[0], *(value for value in args[2:3] if isinstance(value, torch.Tensor))]
    strangers = [tensor for tensor in tensors if not isinstance(tensor, PretendedTensor) and tensor.dim()]
    if strangers and len(strangers) < len(tensors):
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in strangers)
        raise WrongDevice(f"{name} got tensors of the CPU, {shapes}, beside those of another device")
