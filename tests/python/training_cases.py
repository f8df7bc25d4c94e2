"""A small model, its data, and training by torch.optim in a plain loop."""

import contextlib
import copy
import fnmatch
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from paperlab import nn
from torch.nn import functional

VOCABULARY = 61
CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "tie_word_embeddings": False,
    "initializer_range": 0.1,
}
RATE = 0.01

# Of the run that is killed and resumed.
KILLED: dict[str, Any] = {
    "steps": 60,
    "learning_rate": RATE,
    "schedule": "cosine",
    "warmup_steps": 5,
    "weight_decay": 0.1,
    "no_decay": ["*norm*"],
    "clip_norm": 1.0,
    "checkpoint_every": 3,
}

Data = Callable[[int], torch.Tensor]


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """The models are too small for more, and machines that are busy with others wait for them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def model(dtype: str = "float64", seed: int = 1, **settings: Any) -> nn.Decoder:
    config = CONFIG | settings
    if config["model_type"] == "gpt_neox":
        del config["num_key_value_heads"]
    return nn.from_config(config, dtype=dtype, seed=seed)


def counting(step: int, rows: int = 4, length: int = 11) -> torch.Tensor:
    """Rows that count upwards from a random token."""
    generator = torch.Generator().manual_seed(step)
    start = torch.randint(0, VOCABULARY, (rows, 1), generator=generator)
    return (start + torch.arange(length + 1)) % VOCABULARY


def values(decoder: nn.Decoder) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in decoder.named_parameters()}


def same_bits(one: nn.Decoder, other: nn.Decoder) -> bool:
    pairs = zip(values(one).items(), values(other).items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def rates(schedule: str, steps: int, warmup: int, least: float, decay: int) -> list[float]:
    """By the formulas of the documentation."""
    result = []
    for step in range(steps):
        if step < warmup:
            rate = RATE * (step + 1) / warmup
        elif schedule == "cosine":
            turn = math.pi * (step - warmup) / (steps - warmup)
            rate = least + (RATE - least) / 2 * (1 + math.cos(turn))
        elif schedule == "wsd" and step >= steps - decay:
            rate = least + (RATE - least) * (steps - step) / decay
        else:
            rate = RATE
        result.append(rate)
    return result


def _optimizer(kind: str, groups: Any, **options: Any) -> torch.optim.Optimizer:
    if kind == "sgd":
        return torch.optim.SGD(groups, lr=RATE, momentum=options.get("momentum", 0.0))
    if kind == "adafactor":
        return torch.optim.Adafactor(groups, lr=RATE)
    betas, eps = options.get("betas", (0.9, 0.95)), options.get("eps", 1e-8)
    return torch.optim.AdamW(groups, lr=RATE, betas=betas, eps=eps)


def by_torch(
    decoder: nn.Decoder,
    data: Data,
    learning_rates: Sequence[float],
    *,
    optimizer: str = "adamw",
    weight_decay: float = 0.0,
    no_decay: Sequence[str] = (),
    clip_norm: float | None = None,
    **options: Any,
) -> tuple[nn.Decoder, dict[str, list[float]]]:
    """A copy of the model after a plain loop, and what fit returns."""
    trained = copy.deepcopy(decoder)
    named = [(n, p) for n, p in trained.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p], "weight_decay": 0.0 if _is_named(name, no_decay) else weight_decay}
        for name, p in named
    ]
    chosen = _optimizer(optimizer, groups, **options)
    history: dict[str, list[float]] = {"loss": [], "grad_norm": [], "learning_rate": []}
    for step, rate in enumerate(learning_rates):
        batch = data(step)
        logits = trained(batch[:, :-1]).flatten(0, 1)
        loss = functional.cross_entropy(logits, batch[:, 1:].flatten())
        chosen.zero_grad()
        loss.backward()
        most = math.inf if clip_norm is None else clip_norm
        norm = torch.nn.utils.clip_grad_norm_([p for _, p in named], most)
        for group in chosen.param_groups:
            group["lr"] = rate
        chosen.step()
        for key, value in zip(history, (loss.item(), norm.item(), rate), strict=True):
            history[key].append(value)
    return trained, history


def _is_named(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
