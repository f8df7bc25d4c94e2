"""What models in C++ have in common in Python: parameters that both sides see, hooks, saving."""

import copy
import json
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import numpy.typing as npt
import torch

from paperlab import _arguments
from paperlab._hooks import HookHandle
from paperlab._tokens import token_tensor

Tokens = torch.Tensor | npt.NDArray[Any] | Sequence[Sequence[int]]
Path = _arguments.Path


class CppModule(torch.nn.Module):
    """A model in C++ with the parameters of a `torch.nn.Module`, which are the same tensors.

    `named_parameters()` have the names of Hugging Face checkpoints; a tied head is listed once, as
    the embedding. Training, moving and exchanging parameters work as with any `torch.nn.Module`.
    """

    _core: Any

    def __init__(self, core: Any) -> None:
        super().__init__()
        self._core = core
        self._bound: dict[str, torch.Tensor] = {}
        self._places: list[tuple[str, torch.nn.Module, str]] = []
        for name, value in core.parameters():
            *path, leaf = name.split(".")
            module: torch.nn.Module = self
            for part in path:
                if part not in module._modules:
                    module.add_module(part, torch.nn.Module())
                module = module.get_submodule(part)
            module.register_parameter(leaf, torch.nn.Parameter(value))
            self._places.append((name, module, leaf))
        self.eval()

    @property
    def config(self) -> dict[str, Any]:
        """The settings of config.json, as they were read."""
        settings: dict[str, Any] = json.loads(self._core.config)
        return settings

    @property
    def vocab_size(self) -> int:
        """V, the number of tokens."""
        size: int = self._core.vocab_size
        return size

    @property
    def max_positions(self) -> int:
        """The longest sequence that the model reads; a longer one is refused."""
        length: int = self._core.max_positions
        return length

    def save_pretrained(self, directory: Path, *, max_shard_size: int | str = "5GB") -> None:
        """Writes a Hugging Face directory: the same tensors' names and bytes, the same settings.

        max_shard_size: bytes, or a text as "200MB" or "1GiB": more tensors are shards of at most
        this size (a larger tensor has one of its own) with an index.

        The tokenizer's files are copied from where the model was loaded. What was in the directory
        stays whole until everything is written. Raises OSError or ValueError naming the file.
        """
        path = _arguments.directory("save_pretrained", directory)
        size = _arguments.num_bytes("save_pretrained", "max_shard_size", max_shard_size)
        self.bind()
        self._core.save(os.fsdecode(path), size)

    def tensor(self, role: str, layer: int | None = None, head: int | None = None) -> torch.Tensor:
        """Returns the weights of a role, a differentiable view of the parameter."""
        self.bind()
        if not isinstance(role, str):
            raise TypeError(f"tensor: role must be a str, got {type(role).__name__}")
        part: torch.Tensor = self._core.tensor(role, _index("layer", layer), _index("head", head))
        return part

    def linear_names(self) -> list[str]:
        """The names of all linear layers, in the order of their use; the head is last."""
        names: list[str] = self._core.linear_names()
        return names

    def on_linear_input(self, hook: Callable[[str, torch.Tensor], None]) -> HookHandle:
        """Calls `hook(name, x)` with each linear layer's input [..., in] before it is applied."""
        function = callable_argument("on_linear_input", "hook", hook)
        return HookHandle(self._core, self._core.add_linear_hook(function))

    def replace_linear(self, name: str, layer: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Puts a function of [..., in] -> [..., out] in the place of a linear layer.

        A `torch.nn.Module` is one; its parameters stay its own. ValueError if there is no such
        layer.
        """
        function = callable_argument("replace_linear", "layer", layer)
        name = _arguments.text("replace_linear", "name", name)
        size = self._linear_size(name)

        def call(x: torch.Tensor) -> torch.Tensor:
            y = function(x)
            if not isinstance(y, torch.Tensor) or y.shape != (*x.shape[:-1], size):
                got = list(y.shape) if isinstance(y, torch.Tensor) else type(y).__name__
                wanted = [*x.shape[:-1], size]
                raise ValueError(f"replace_linear: layer of {name} must return {wanted}, got {got}")
            return y

        self._core.replace_linear(name, call)

    def restore_linear(self, name: str) -> None:
        """Undoes `replace_linear`."""
        self._core.restore_linear(_arguments.text("restore_linear", "name", name))

    def __copy__(self) -> Self:
        other = type(self).__new__(type(self))
        other.__dict__.update(self.__dict__)
        return other

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError(
            f"pickle: a {type(self).__name__} cannot be pickled; save_pretrained and "
            "paperlab.nn.load, or state_dict, carry it over"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        other = type(self).__new__(type(self))
        CppModule.__init__(other, self._core.copy())
        memo[id(self)] = other
        for (_, value), (_, module, leaf) in zip(self._current(), other._places, strict=True):
            setattr(module, leaf, copy.deepcopy(value, memo))
        other.train(self.training)
        return other

    def bind(self) -> None:
        """Gives the C++ model the parameters as they are now; every call does so first.

        Somebody may have exchanged one: `load_state_dict(assign=True)`, `functional_call`.
        """
        for name, value in self._current():
            if self._bound.get(name) is not value:
                if torch._C._functorch.is_functorch_wrapped_tensor(value):
                    raise NotImplementedError(
                        f"forward: torch.func.grad, vmap and the like cannot reach {name} in C++; "
                        "functional_call and torch.autograd can"
                    )
                self._core.set_parameter(name, value)
                self._bound[name] = value

    def token_ids(self, function: str, tokens: Tokens) -> torch.Tensor:
        """Tokens as int64 on the device of the model; `function` is for messages."""
        plain = token_tensor(function, tokens, "[B, T]", 2)
        return plain.to(device=next(self.parameters()).device, dtype=torch.int64)

    def _linear_size(self, name: str) -> int:
        size: int | None = self._core.linear_size(name)
        return self.vocab_size if size is None else size

    def _current(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, module, leaf in self._places:
            value = module._parameters.get(leaf)
            if value is None:
                value = _computed(module, leaf)
            if not isinstance(value, torch.Tensor):
                raise ValueError(f"parameter {name} must be a tensor, got {value!r:.60}")
            yield name, value


def callable_argument(function: str, name: str, value: Callable[..., Any]) -> Callable[..., Any]:
    """`value`, which must be callable."""
    if not callable(value):
        raise TypeError(f"{function}: {name} must be callable, got {type(value).__name__}")
    return value


def _index(name: str, value: int | None) -> int | None:
    return None if value is None else _arguments.integer("tensor", name, value, 0, 2**31)


def _computed(module: torch.nn.Module, leaf: str) -> Any:
    """What stands in a parameter's place: torch.nn.utils' parametrize, prune, weight_norm, ..."""
    for hook in module._forward_pre_hooks.values():  # some compute it there
        hook(module, ())
    return getattr(module, leaf, None)
