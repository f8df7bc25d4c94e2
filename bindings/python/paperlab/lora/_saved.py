"""Modules that an adapter has whole: peft's modules_to_save, a classifier's new head say."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from paperlab._module import CppModule

PREFIX = "base_model.model."
TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class Saved:
    """The parameters of such modules, and their values from before the adapter."""

    def __init__(self, parameters: Mapping[str, torch.nn.Parameter]) -> None:
        self.parameters = dict(parameters)
        self._before: dict[str, torch.Tensor] = {}

    def put(self, values: Mapping[str, torch.Tensor]) -> None:
        """Lets them be trained; those of `values`, by their names, are set first."""
        for name, parameter in self.parameters.items():
            self._before[name] = parameter.detach().clone()
            if name in values:
                parameter.detach().copy_(values[name])
            parameter.requires_grad_(True)

    def restore(self) -> None:
        for name, value in self._before.items():
            self.parameters[name].detach().copy_(value)

    def tensors(self) -> dict[str, torch.Tensor]:
        """As they stand in an adapter's file."""
        return {f"{PREFIX}{name}": p.detach() for name, p in self.parameters.items()}


def of(source: str, model: CppModule, modules: Sequence[str], targets: Sequence[str]) -> Saved:
    """The parameters of all modules whose names end so, as peft looks them up.

    ValueError if a target of the adapter lies in one (an end as "proj" finds q_proj too; peft
    cannot save that either), or one is the matrix of a tied head.
    """
    found = [
        name
        for name, _ in model.named_modules()
        if name and any(name.endswith(end) for end in modules if end)
    ]

    def is_inside(name: str) -> bool:
        return any(name == module or name.startswith(f"{module}.") for module in found)

    parameters = {name: p for name, p in model.named_parameters() if is_inside(name)}
    for target in targets:
        if is_inside(target):
            raise ValueError(
                f"{source}: modules_to_save must not hold a layer of target_modules, got {target}"
            )
    known = {name for name, _ in model.named_parameters()}
    if any(f"{name}.weight" not in known for name in model.linear_names()):
        shared = model.tensor("embed").data_ptr()
        for name, parameter in parameters.items():
            if parameter.data_ptr() == shared:
                raise ValueError(
                    f"{source}: modules_to_save must not hold the matrix of a tied head, got {name}"
                )
    return Saved(parameters)


def take(path: Path, saved: Saved, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Takes the values out of the file's tensors."""
    values = {}
    for name, parameter in saved.parameters.items():
        value = tensors.pop(f"{PREFIX}{name}", None)
        if value is None:
            raise ValueError(f"{path}: has no tensor '{PREFIX}{name}'")
        if value.shape != parameter.shape or value.dtype not in TYPES:
            raise ValueError(
                f"{path}: tensor '{PREFIX}{name}' must be {list(parameter.shape)} of float32, "
                f"float64, bfloat16 or float16, got {list(value.shape)} of {value.dtype}"
            )
        if value.isnan().any():
            raise ValueError(f"{path}: tensor '{PREFIX}{name}' holds NaN")
        values[name] = value
    return values
