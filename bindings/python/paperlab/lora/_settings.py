"""adapter_config.json: what an adapter is, and which layers of a model it changes."""

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paperlab import _arguments
from paperlab.lora import _expressions

CONFIG = "adapter_config.json"
ALL_LINEAR = "all-linear"

_MOST_BYTES = 10 << 20
_MOST_LETTERS = 1 << 18  # of all keys of rank_pattern or alpha_pattern

# Keys that say nothing of the numbers.
_NOTES = {
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "task_type",
}
# Where A and B begin, while the base stays as it is.
_PLAIN_INITS = (True, False, "gaussian", "orthogonal", "eva")
# As peft chooses them where nobody does.
_DEFAULT_TARGETS = {
    "bert": ["query", "value"],
    "deberta-v2": ["query_proj", "value_proj"],
    "gpt2": ["c_attn"],
    "gpt_neox": ["query_key_value"],
    "roberta": ["query", "value"],
}
_ATTENTION_TARGETS = ["q_proj", "v_proj"]


@dataclass(frozen=True)
class Settings:
    """What an adapter is, apart from its matrices."""

    r: int
    alpha: float
    target_modules: str | tuple[str, ...]
    dropout: float
    use_rslora: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    modules_to_save: tuple[str, ...]
    _matcher: _expressions.Matcher = field(
        default_factory=_expressions.Matcher, compare=False, repr=False
    )

    def rank(self, name: str) -> int:
        """The rank of the layer `name`."""
        key = self._matcher.first("rank", self.rank_pattern, name)
        return self.r if key is None else self.rank_pattern[key]

    def scaling(self, name: str) -> float:
        """What multiplies B A of the layer `name`."""
        key = self._matcher.first("alpha", self.alpha_pattern, name)
        alpha = self.alpha if key is None else self.alpha_pattern[key]
        rank = self.rank(name)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    def targets(self, source: str, names: Sequence[str]) -> list[str]:
        """Those of the linear layers `names`, a head last, that the adapter changes.

        As in peft a layer of modules_to_save is none of them, even where target_modules names it.
        """
        wanted = self.target_modules
        if isinstance(wanted, str) and wanted.lower() == ALL_LINEAR:
            has_head = not re.search(r"\.\d+\.", names[-1])  # a head is in no block
            chosen = list(names[:-1] if has_head else names)
        elif isinstance(wanted, str):
            chosen = [name for name in names if self._matcher.fullmatch(wanted, name)]
        else:
            ends = dict.fromkeys(wanted)
            for w in ends:
                if not any(name == w or name.endswith(f".{w}") for name in names):
                    raise ValueError(
                        f"{source}: target_modules must name linear layers of the model "
                        f"({_leaves(names)}), got {w!a:.60}"
                    )
            chosen = [
                name for name in names if any(name == w or name.endswith(f".{w}") for w in ends)
            ]
        if not chosen:
            raise ValueError(
                f"{source}: target_modules must match a linear layer of the model "
                f"({_leaves(names)}), got {wanted!a:.60}"
            )
        kept = [name for name in chosen if not self._is_saved(name)]
        if not kept:
            raise ValueError(
                f"{source}: target_modules must match a linear layer outside modules_to_save "
                f"{list(self.modules_to_save)!a:.60}, got {wanted!a:.60}"
            )
        return kept

    def _is_saved(self, name: str) -> bool:
        """Whether a module of modules_to_save is or holds the layer; whole parts of names count."""
        return any(f".{module}." in f".{name}." for module in self.modules_to_save)


def default_targets(model_type: object) -> list[str]:
    """The layers of a kind of model that an adapter changes where nobody says which."""
    return list(_DEFAULT_TARGETS.get(str(model_type), _ATTENTION_TARGETS))


def from_arguments(
    r: int,
    alpha: float,
    target_modules: str | Sequence[str],
    dropout: float,
    use_rslora: bool,
    rank_pattern: Mapping[str, int] | None,
    alpha_pattern: Mapping[str, float] | None,
    modules_to_save: Sequence[str] | None,
) -> Settings:
    """The arguments of `attach`; ValueError or TypeError naming one that is wrong."""
    return _checked(
        "attach: ",
        {
            "r": r,
            "lora_alpha": alpha,
            "target_modules": target_modules,
            "lora_dropout": dropout,
            "use_rslora": use_rslora,
            "rank_pattern": rank_pattern,
            "alpha_pattern": alpha_pattern,
            "modules_to_save": modules_to_save,
        },
        {"lora_alpha": "alpha", "lora_dropout": "dropout"},
    )


def as_config(settings: Settings, model: Mapping[str, Any], base: str | None) -> dict[str, Any]:
    """The settings as peft writes them; `model`: config.json of the base, `base`: its path."""
    targets = settings.target_modules
    alpha = settings.alpha
    return {
        "alpha_pattern": dict(settings.alpha_pattern),
        "auto_mapping": None,
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": model.get("model_type") == "gpt2",
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_pattern": None,
        "layers_to_transform": None,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": settings.dropout,
        "modules_to_save": list(settings.modules_to_save) or None,
        "peft_type": "LORA",
        "r": settings.r,
        "rank_pattern": dict(settings.rank_pattern),
        "revision": None,
        "target_modules": targets if isinstance(targets, str) else list(targets),
        "task_type": _task(model, settings),
        "use_rslora": settings.use_rslora,
    }


def as_text(config: Mapping[str, Any]) -> str:
    """The bytes of the file, as peft lays them out."""
    return json.dumps(config, indent=2, sort_keys=True)


def read(directory: Path, model: Mapping[str, Any]) -> tuple[Settings, dict[str, Any]]:
    """Settings and config of a directory; ValueError names the file and the setting."""
    path = directory / CONFIG
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(f"{path}: must have at most {_MOST_BYTES} bytes")
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path}: must be an object, got {type(config).__name__}")
    source = f"{path}: "
    for key, value in config.items():
        _check_key(source, key, value)
    if "r" not in config:
        raise ValueError(f"{path}: has no r")
    values = {
        "lora_alpha": 8,
        "lora_dropout": 0.0,
        "use_rslora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
        "modules_to_save": None,
    } | {key: config[key] for key in _READ if key in config}
    if values.get("target_modules") is None:
        values["target_modules"] = default_targets(model.get("model_type"))
    return _checked(source, values, {}), config


_READ = (
    "r",
    "lora_alpha",
    "target_modules",
    "lora_dropout",
    "use_rslora",
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
)


def _check_key(source: str, key: str, value: Any) -> None:
    """Settings that nobody here knows must be off: None, false, or empty."""
    required: dict[str, tuple[Any, ...]] = {
        "peft_type": ("LORA",),
        "bias": ("none",),
        "fan_in_fan_out": (True, False),  # where GPT-2 keeps a matrix as [in, out]
        "init_lora_weights": _PLAIN_INITS,
    }
    if key in required:
        if not any(value is x or (isinstance(x, str) and value == x) for x in required[key]):
            wanted = " or ".join(repr(x) for x in required[key])
            raise ValueError(f"{source}{key} must be {wanted}, got {value!a:.60}")
    elif key not in _READ and key not in _NOTES and value not in (None, False, "", [], {}):
        raise ValueError(
            f"{source}the setting {key} = {value!a:.60} could change the results and is not known; "
            f"known are {', '.join(_READ)}, bias none and fan_in_fan_out"
        )


def _checked(source: str, values: Mapping[str, Any], shown: Mapping[str, str]) -> Settings:
    function = source.removesuffix(": ")

    def name(key: str) -> str:
        return shown.get(key, key)

    dropout = _arguments.real(function, name("lora_dropout"), values["lora_dropout"])
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"{source}{name('lora_dropout')} must be >= 0 and < 1, got {dropout}")
    return Settings(
        r=_arguments.integer(function, "r", values["r"], 1, 2**20),
        alpha=_arguments.real(function, name("lora_alpha"), values["lora_alpha"]),
        target_modules=_target_modules(function, values["target_modules"]),
        dropout=dropout,
        use_rslora=_arguments.boolean(function, "use_rslora", values["use_rslora"]),
        rank_pattern={
            key: _arguments.integer(function, f"rank_pattern[{key!r:.60}]", value, 1, 2**20)
            for key, value in _pattern(function, "rank_pattern", values["rank_pattern"]).items()
        },
        alpha_pattern={
            key: _arguments.real(function, f"alpha_pattern[{key!r:.60}]", value)
            for key, value in _pattern(function, "alpha_pattern", values["alpha_pattern"]).items()
        },
        modules_to_save=_modules(function, values["modules_to_save"]),
        _matcher=_expressions.Matcher(source),
    )


def _target_modules(function: str, value: object) -> str | tuple[str, ...]:
    if isinstance(value, str):
        _check_regex(function, "target_modules", value, is_whole=True)
        return value
    is_list = isinstance(value, list | tuple | set | frozenset)
    if not is_list or not all(isinstance(x, str) for x in value):  # type: ignore[attr-defined]
        raise _arguments.ArgumentTypeError(
            f"{function}: target_modules must be a str or a list of str, got {value!a:.60}"
        )
    names = sorted(value) if isinstance(value, set | frozenset) else list(value)  # type: ignore[call-overload]
    if not names:
        raise ValueError(f"{function}: target_modules must name a layer, got none")
    return tuple(names)


def _modules(function: str, value: object) -> tuple[str, ...]:
    is_list = isinstance(value, list | tuple | set | frozenset)
    if value is not None and not (is_list and all(isinstance(x, str) and x for x in value)):  # type: ignore[attr-defined]
        raise _arguments.ArgumentTypeError(
            f"{function}: modules_to_save must be a list of str or None, got {value!a:.60}"
        )
    return tuple(value or ())  # type: ignore[arg-type]


def _pattern(function: str, key: str, value: object) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(x, str) for x in value):
        raise _arguments.ArgumentTypeError(
            f"{function}: {key} must map patterns to numbers, got {value!a:.60}"
        )
    num_letters = sum(len(pattern) for pattern in value)
    if num_letters > _MOST_LETTERS:
        raise ValueError(
            f"{function}: {key} must have at most {_MOST_LETTERS} letters, got {num_letters}"
        )
    for pattern in value:
        _check_regex(function, key, pattern, is_whole=False)
    return value


def _check_regex(function: str, key: str, pattern: str, *, is_whole: bool) -> None:
    try:
        _expressions.check(pattern, is_whole=is_whole)
    except ValueError as error:
        raise ValueError(
            f"{function}: {key} must hold regular expressions, got {pattern!a:.60}: {error}"
        ) from None


def _leaves(names: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in names))


def _task(model: Mapping[str, Any], settings: Settings) -> str | None:
    """peft takes an adapter of classification to have a module `classifier` or `score` whole."""
    architecture = str((model.get("architectures") or [""])[0])
    if architecture.endswith("CausalLM"):
        return "CAUSAL_LM"
    has_head = {"classifier", "score"} & {*settings.modules_to_save}
    return "SEQ_CLS" if architecture.endswith("SequenceClassification") and has_head else None


def path_of(directory: object) -> str | None:
    """The path of a model's directory as text; None of a model that has none."""
    return os.fsdecode(directory) or None if isinstance(directory, bytes) else None
