"""Adapters on a model: attached, trained, merged, saved and loaded."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch

from paperlab import _arguments, io
from paperlab._module import CppModule
from paperlab.lora import _names, _saved, _settings
from paperlab.lora._layer import Layer, Matrix, computing, initial, new_layer
from paperlab.lora._saved import PREFIX as _PREFIX
from paperlab.lora._saved import TYPES as _TYPES
from paperlab.lora._saved import Saved
from paperlab.lora._settings import Settings

WEIGHTS = "adapter_model.safetensors"


class Adapter:
    """What `attach` and `load` put on a model."""

    def __init__(self, settings: Settings, config: Mapping[str, Any]) -> None:
        self.settings = settings
        self.config = dict(config)  #: Of adapter_config.json.
        self.is_merged = False
        self._layers: dict[str, Layer] = {}
        self._stored: dict[str, str] = {}  # a layer's name in the adapter's files
        self._with_base: set[str] = set()  # of these, the files have the base's matrix too
        self._saved = Saved({})
        self._were_trained: list[torch.nn.Parameter] = []

    @property
    def names(self) -> list[str]:
        """The linear layers that it changes."""
        return list(self._layers)

    def parameters(self) -> list[torch.nn.Parameter]:
        """A and B of each layer, [r, in] and [out, r], and those of modules_to_save."""
        low = [x for layer in self._layers.values() for x in (layer.a, layer.b)]
        return [*low, *self._saved.parameters.values()]


_adapters: WeakKeyDictionary[torch.nn.Module, Adapter] = WeakKeyDictionary()


def attach(
    model: CppModule,
    *,
    r: int = 8,
    alpha: float = 16,
    target_modules: str | Sequence[str] | None = None,
    dropout: float = 0.0,
    use_rslora: bool = False,
    rank_pattern: Mapping[str, int] | None = None,
    alpha_pattern: Mapping[str, float] | None = None,
    modules_to_save: Sequence[str] | None = None,
    seed: int = 0,
    dtype: torch.dtype | str | None = None,
) -> Adapter:
    """Puts a new adapter on a model and freezes everything else; the model computes as before.

    A and B become the model's parameters `<layer>.lora_A.weight` and `<layer>.lora_B.weight`: A is
    uniform in +-1 / sqrt(in), a function of `seed` and the layer's name, B is zero.

    model: what `nn.load` returns. target_modules: ends of names of linear layers (`q_proj`,
    `layers.0.mlp.up_proj`), or a regular expression of whole names, or "all-linear": all but the
    head; by default the queries' and values'. rank_pattern, alpha_pattern: r and alpha by regular
    expressions of ends of names. dropout: of the adapter's input while the model trains.
    modules_to_save: ends of names of modules that are trained and saved whole (`classifier`);
    a layer in one is no target, but one must remain.
    dtype: of A and B; by default the model's, float32 for bfloat16 and float16. The names of a ViT
    are those of its files, or those of transformers 5 (`layers.0.attention.q_proj`) if they alone
    fit, and the head of GPT-NeoX is embed_out or lm_head; `save` writes the adapter under these.

    A torch loop trains it (`train.fit` has the model's own parameters alone); copies of the model
    by `copy.deepcopy` and `save_pretrained` have the base alone, with modules_to_save as they are.
    Raises ValueError or TypeError, naming the argument and before any change, if one is not as
    above or the model has an adapter.
    """
    _check_model("attach", model)
    config = model.config
    if target_modules is None:
        target_modules = _settings.default_targets(config.get("model_type"))
    settings = _settings.from_arguments(
        r, alpha, target_modules, dropout, use_rslora, rank_pattern, alpha_pattern, modules_to_save
    )
    number = _arguments.integer("attach", "seed", seed, 0, 2**64 - 1)
    wanted = None if dtype is None else _dtype("attach", dtype)
    adapter = Adapter(
        settings,
        _settings.as_config(
            settings, config, _settings.path_of(getattr(model._core, "path", None))
        ),
    )
    adapter._stored = _names.chosen(model, settings)
    matrices = {}
    for name, stored in adapter._stored.items():
        weight = new_layer("attach", model, name).weight()
        kind = wanted or computing(weight.dtype)
        matrices[name] = initial(weight, name, settings.rank(stored), number, kind)
    adapter._saved = _saved.of("attach", model, settings.modules_to_save, list(adapter._stored))
    if settings.modules_to_save and not adapter._saved.parameters:
        raise ValueError(
            "attach: modules_to_save must name modules of the model, got "
            f"{list(settings.modules_to_save)!a:.60}"
        )
    _put("attach", model, adapter, matrices, {})
    return adapter


def load(
    model: CppModule,
    directory: str | os.PathLike[str],
    *,
    dtype: torch.dtype | str | None = None,
) -> Adapter:
    """Puts the adapter of a directory in peft's layout on a model and freezes everything else.

    directory: adapter_config.json (peft_type LORA) and adapter_model.safetensors with
    `base_model.model.<layer>.lora_A.weight` [r, in] and `.lora_B.weight` [out, r]. Read are r,
    lora_alpha, target_modules, lora_dropout, use_rslora, rank_pattern, alpha_pattern and
    modules_to_save, whose parameters get the file's values until `detach` and whose layers are no
    targets; a setting that would change the numbers and is not known (use_dora,
    layers_to_transform, ...) is refused, as are regular expressions with back-references and those
    that would take long. The names of a ViT may be those of transformers 4 or 5.
    dtype: of A and B; None: the file's, with products in float32 for bfloat16 and float16.

    Raises OSError if a file is missing, ValueError naming the file and the setting or tensor: what
    is unknown, missing, of another shape, or NaN. The model is then as it was.
    """
    _check_model("load", model)
    folder = _directory("load", directory)
    wanted = None if dtype is None else _dtype("load", dtype)
    settings, config = _settings.read(folder, model.config)
    path = folder / WEIGHTS
    if not path.is_file() and (folder / "adapter_model.bin").is_file():
        raise ValueError(f"{folder / 'adapter_model.bin'}: pickled; save it as {WEIGHTS}")
    tensors = io.load_file(path)
    names = _names.stored(model, tensors)
    targets = settings.targets(str(folder / _settings.CONFIG), list(names))
    stored = {names[target]: target for target in targets}
    matrices = {
        name: _read(path, new_layer("load", model, name), settings, target, tensors)
        for name, target in stored.items()
    }
    source = str(folder / _settings.CONFIG)
    saved = _saved.of(source, model, settings.modules_to_save, list(stored))
    values = _saved.take(path, saved, tensors)
    with_base = {
        name for name, target in stored.items() if _take_base(path, model, name, target, tensors)
    }
    if tensors:
        shown = ", ".join(repr(name) for name in sorted(tensors)[:4])
        raise ValueError(f"{path}: no layer of target_modules has the tensors {shown}")
    adapter = Adapter(settings, config)
    adapter._stored, adapter._with_base, adapter._saved = stored, with_base, saved
    for name, (a, b) in matrices.items():
        matrices[name] = (a.to(wanted or a.dtype), b.to(wanted or b.dtype))
    _put("load", model, adapter, matrices, values)
    return adapter


def save(model: CppModule, directory: str | os.PathLike[str]) -> None:
    """Writes the model's adapter, merged or not, so that peft and `load` read it.

    The bytes are those that peft would write: an adapter that was loaded and not changed gives the
    same files. Raises ValueError if the model has no adapter or a value is NaN, OSError if the
    system refuses.
    """
    adapter = of(model, "save")
    folder = _directory("save", directory)
    tensors = {}
    for name, layer in adapter._layers.items():
        for letter, matrix in (("A", layer.a), ("B", layer.b)):
            key = f"{_PREFIX}{adapter._stored[name]}.lora_{letter}.weight"
            if matrix.isnan().any():
                raise ValueError(f"save: {key} must hold numbers, got NaN")
            tensors[key] = matrix.detach()
        if name in adapter._with_base:
            tensors[f"{_PREFIX}{adapter._stored[name]}.base_layer.weight"] = layer.base_weight()
    for key, value in adapter._saved.tensors().items():
        if value.isnan().any():
            raise ValueError(f"save: {key} must hold numbers, got NaN")
        tensors[key] = value
    folder.mkdir(parents=True, exist_ok=True)
    io.save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    temporary = folder / f"{_settings.CONFIG}.tmp"
    try:
        temporary.write_text(_settings.as_text(adapter.config), encoding="utf-8")
        temporary.replace(folder / _settings.CONFIG)
    finally:
        temporary.unlink(missing_ok=True)


def merge(model: CppModule) -> None:
    """Adds scaling B A to the weights, so that the model is as fast as without an adapter.

    The sum is made in float64 and rounded to the weights' type. The weights from before are kept
    for `unmerge`; `detach(model, keep_merged=True)` lets them go. Raises ValueError if there is no
    adapter, it is merged already, the head is the embedding too, or a weight would overflow (none
    is changed then).
    """
    adapter = of(model, "merge")
    if adapter.is_merged:
        raise ValueError("merge: the adapter must not be merged yet, got one that is")
    for name, layer in adapter._layers.items():
        if layer.is_tied:
            raise ValueError(
                f"merge: {name} must have a matrix of its own, got the embedding (a tied head)"
            )
        if not isinstance(layer.base.weight, torch.nn.Parameter):
            raise ValueError(f"merge: the weight of {name} must be a parameter, got a computed one")
    try:
        for name, layer in adapter._layers.items():
            layer.merge(name)
    except BaseException:
        for layer in adapter._layers.values():
            layer.unmerge()
        raise
    for name in adapter.names:
        model.restore_linear(name)
    adapter.is_merged = True


def unmerge(model: CppModule) -> None:
    """Undoes `merge`: the weights have the bits that they had before."""
    adapter = of(model, "unmerge")
    if not adapter.is_merged:
        raise ValueError("unmerge: the adapter must be merged, got one that is not")
    for name, layer in adapter._layers.items():
        layer.unmerge()
        model.replace_linear(name, layer)
    adapter.is_merged = False


def detach(model: CppModule, *, keep_merged: bool = False) -> None:
    """Takes the adapter off; the parameters of the base require gradients as they did before it.

    keep_merged: the weights stay as `merge` has made them. ValueError if it was not called then.
    """
    adapter = of(model, "detach")
    if _arguments.boolean("detach", "keep_merged", keep_merged) and not adapter.is_merged:
        raise ValueError("detach: keep_merged must be False for an adapter that is not merged")
    for name, layer in adapter._layers.items():
        if adapter.is_merged and not keep_merged:
            layer.unmerge()
        model.restore_linear(name)
        del layer.place.lora_A, layer.place.lora_B
        if layer.is_tied:
            _remove_empty(model, name)
    if not keep_merged:
        adapter._saved.restore()
    for parameter in adapter._saved.parameters.values():
        parameter.requires_grad_(False)
    for parameter in adapter._were_trained:
        parameter.requires_grad_(True)
    del _adapters[model]


def of(model: CppModule, function: str = "of") -> Adapter:
    """The adapter of a model; ValueError if it has none."""
    if not isinstance(model, CppModule):
        raise TypeError(
            f"{function}: model must be what nn.load returns, got {type(model).__name__}"
        )
    adapter = _adapters.get(model)
    if adapter is None:
        raise ValueError(f"{function}: model must have an adapter, got one without")
    return adapter


def _check_model(function: str, model: object) -> None:
    if not isinstance(model, CppModule):
        raise TypeError(
            f"{function}: model must be what nn.load returns, got {type(model).__name__}"
        )
    if model in _adapters:
        raise ValueError(f"{function}: model must have no adapter, got one with; detach() it first")


def _directory(function: str, value: object) -> Path:
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{function}: directory must be a path, got {type(value).__name__}")
    return Path(os.fsdecode(_arguments.directory(function, value)))


def _dtype(function: str, dtype: torch.dtype | str) -> torch.dtype:
    found: torch.dtype = getattr(torch, _arguments.dtype_name(function, dtype))
    return found


def _read(
    path: Path, layer: Layer, settings: Settings, name: str, tensors: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Takes A and B out of the file's tensors."""
    weight = layer.weight()
    rank = settings.rank(name)
    matrices = []
    for letter, shape in (("A", (rank, weight.shape[1])), ("B", (weight.shape[0], rank))):
        key = f"{_PREFIX}{name}.lora_{letter}.weight"
        matrix = tensors.pop(key, None)
        if matrix is None:
            raise ValueError(f"{path}: has no tensor {key!r}")
        if tuple(matrix.shape) != shape or matrix.dtype not in _TYPES:
            raise ValueError(
                f"{path}: tensor {key!r} must be {list(shape)} of float32, float64, bfloat16 or "
                f"float16, got {list(matrix.shape)} of {matrix.dtype}"
            )
        if matrix.isnan().any():
            raise ValueError(f"{path}: tensor {key!r} holds NaN")
        matrices.append(matrix)
    return matrices[0], matrices[1]


def _take_base(
    path: Path, model: CppModule, name: str, stored: str, tensors: dict[str, torch.Tensor]
) -> bool:
    """Whether the file has the base's matrix too, as peft adds that of an adapted head."""
    key = f"{_PREFIX}{stored}.base_layer.weight"
    base = tensors.pop(key, None)
    if base is None:
        return False
    weight = new_layer("load", model, name).base_weight()
    if base.shape != weight.shape or not torch.equal(base.to(weight), weight):
        raise ValueError(f"{path}: tensor '{key}' must be the model's own weight, got another one")
    return True


def _put(
    function: str,
    model: CppModule,
    adapter: Adapter,
    matrices: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
    values: Mapping[str, torch.Tensor],
) -> None:
    model.bind()
    adapter._were_trained = [p for p in model.parameters() if p.requires_grad]
    device = next(model.parameters()).device
    for parameter in adapter._were_trained:
        parameter.requires_grad_(False)
    for name, (a, b) in matrices.items():
        layer = new_layer(function, model, name)
        if layer.is_tied:
            _add(model, name, layer.place)
        layer.scaling = adapter.settings.scaling(adapter._stored[name])
        layer.dropout = adapter.settings.dropout
        layer.place.lora_A = Matrix(a.to(device))
        layer.place.lora_B = Matrix(b.to(device))
        layer.place.train(model.training)
        adapter._layers[name] = layer
        model.replace_linear(name, layer)
    adapter._saved.put(values)
    _adapters[model] = adapter


def _add(model: CppModule, name: str, place: torch.nn.Module) -> None:
    """Puts a module in the tree of a model that has none there."""
    parent: torch.nn.Module = model
    *path, leaf = name.split(".")
    for part in path:
        if part not in parent._modules:
            parent.add_module(part, torch.nn.Module())
        parent = parent.get_submodule(part)
    parent.add_module(leaf, place)


def _remove_empty(model: CppModule, name: str) -> None:
    """Takes out modules of this path that have no parameters any more."""
    path = name
    while path and next(model.get_submodule(path).parameters(), None) is None:
        parent, _, leaf = path.rpartition(".")
        del model.get_submodule(parent)._modules[leaf]
        path = parent
