"""Read-only tensors, for mapped memory that belongs to a running server."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

_WRITING = frozenset({"__setitem__", "__set__"})
"""Methods that write to their first argument, apart from those whose name ends with an underscore."""


class ReadOnlyError(RuntimeError):
    """An operation would have written to a read-only tensor: a bug in the program."""


class ReadOnlyTensor(Tensor):
    """A tensor that refuses in-place operations, `out=` and optimisers, as do all views of it. Results computed from
    it are plain tensors."""

    @staticmethod
    def of(tensor: Tensor) -> ReadOnlyTensor:
        """The same memory as a read-only tensor."""
        return tensor.detach().as_subclass(ReadOnlyTensor)

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        writes_first = (name.endswith("_") and not name.endswith("__")) or name in _WRITING
        written = [*args[:1]] if writes_first else []
        written += [kwargs[key] for key in ("out",) if key in kwargs]
        if any(isinstance(leaf, cls) for leaf in tree_flatten(written)[0]):
            raise ReadOnlyError(f"{name} would write to weights that vLLM serves")
        with torch._C.DisableTorchFunctionSubclass():
            result = function(*args, **kwargs)
        sources = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, cls)]
        if isinstance(result, Tensor) and any(_shares_memory(result, source) for source in sources):
            return result.as_subclass(cls)
        if isinstance(result, tuple | list) and any(isinstance(piece, Tensor) for piece in result):
            return type(result)(
                piece.as_subclass(cls)
                if isinstance(piece, Tensor) and any(_shares_memory(piece, source) for source in sources)
                else piece
                for piece in result
            )
        return result


def _shares_memory(left: Tensor, right: Tensor) -> bool:
    with torch._C.DisableTorchFunctionSubclass():
        return bool(left.untyped_storage()._cdata == right.untyped_storage()._cdata)
