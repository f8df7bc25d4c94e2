"""What each process of train_parallel_test.py does: train_parallel_worker.py TWO|THREE FOLDER."""

import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import training_cases as cases
from paperlab import nn, train
from torch import distributed

RATE = cases.RATE
STEPS = 20
ROWS = 12

# Those that change no rounding but that of the sums, and those that do more.
RUNS: dict[str, dict[str, Any]] = {
    "sgd": {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.1},
    "adamw": {"weight_decay": 0.1, "no_decay": ["*norm*"], "clip_norm": 0.5},
    "adafactor": {"optimizer": "adafactor"},
    "accumulate": {"optimizer": "sgd", "accumulate": 2},
    "bfloat16": {"optimizer": "sgd", "precision": "bfloat16"},
}
ENCODER: dict[str, Any] = {
    "model_type": "bert",
    "architectures": ["BertForSequenceClassification"],
    "vocab_size": cases.VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_labels": 3,
}
VIT: dict[str, Any] = {
    "model_type": "vit",
    "architectures": ["ViTForImageClassification"],
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 4,
    "patch_size": 2,
    "num_channels": 1,
    "num_labels": 3,
    "initializer_range": 0.3,
}
VIT_RATE = 1e-3  # ten times more may spread rounding over all tensors
KEPT: dict[str, Any] = {"steps": 8, "learning_rate": RATE, "schedule": "cosine", "clip_norm": 0.5}

Folder = Path
Results = dict[str, Any]


def batch(step: int) -> torch.Tensor:
    return cases.counting(step, ROWS)


def run(seed: int = 1, **options: Any) -> tuple[nn.Decoder, dict[str, list[float]]]:
    model = cases.model("float32", seed=seed)
    given = {"steps": STEPS, "learning_rate": RATE} | options
    return model, train.fit(model, given.pop("data", batch), **given)


def attempt(work: Callable[[], object]) -> str:
    """The type and message of what the work raises."""
    try:
        work()
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def all_runs(results: Results, weights: dict[str, Any], rank: int, names: list[str]) -> None:
    for name in names:
        for shard in (False, True):
            # All begin with the first one's values.
            model, history = run(seed=rank + 1, shard_optimizer=shard, **RUNS[name])
            key = f"{name}-shards" if shard else name
            results[key], weights[key] = history, cases.values(model)


def freed(model: nn.Decoder) -> bool:
    return all(value.grad is None for value in model.parameters())


def labelled(step: int) -> tuple[torch.Tensor, torch.Tensor, None, torch.Tensor]:
    tokens = batch(step)
    return tokens, tokens[:, 0] % 3, None, tokens % 2


def pictures(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    labels = torch.arange(ROWS) % 3
    return torch.randn(ROWS, 1, 4, 4, generator=generator) + labels.view(-1, 1, 1, 1), labels


def encoder_run(seed: int, accumulate: int) -> tuple[nn.Model, dict[str, list[float]]]:
    model = nn.from_config(ENCODER, seed=seed)
    options: dict[str, Any] = {"steps": 3, "learning_rate": RATE, "accumulate": accumulate}
    return model, train.fit(model, labelled, **options)


def vit_run(seed: int, optimizer: str) -> tuple[nn.Model, dict[str, list[float]]]:
    model = nn.from_config(VIT, seed=seed)
    options: dict[str, Any] = {"steps": STEPS, "learning_rate": VIT_RATE, "optimizer": optimizer}
    return model, train.fit(model, pictures, **options)


def errors(results: Results, rank: int) -> None:
    def bad_loss(step: int) -> torch.Tensor:
        if step == 2 and rank == 1:
            with torch.no_grad():
                model.get_parameter("model.norm.weight")[0] = math.nan
        return batch(step)

    def bad_data(step: int) -> torch.Tensor:
        if step == 2 and rank == 1:
            raise LookupError("no such row\nat all")
        return batch(step)

    model = cases.model("float32")
    results["loss"] = attempt(lambda: train.fit(model, bad_loss, steps=4, learning_rate=RATE))
    results["freed"] = freed(model)
    results["data"] = attempt(lambda: run(data=bad_data))
    results["rows"] = attempt(lambda: run(data=lambda step: cases.counting(step, 3)))
    results["arguments"] = attempt(lambda: run(learning_rate=RATE * (rank + 1)))
    results["batches"] = attempt(lambda: run(data=lambda step: batch(step + rank)))
    # Refused in Python, in one process alone.
    results["steps"] = attempt(lambda: run(steps=-rank))
    results["model"] = attempt(
        lambda: train.fit(torch.nn.Linear(1, 1) if rank else model, batch, steps=1, learning_rate=1)
    )


class Stateful:
    """Batches that depend on what was drawn before."""

    def __init__(self) -> None:
        self.drawn = 0

    def __call__(self, step: int) -> torch.Tensor:
        assert step == self.drawn
        self.drawn += 1
        return batch(self.drawn)

    def state(self) -> int:
        return self.drawn

    def load_state(self, state: int) -> None:
        self.drawn = state


def stops(results: Results, folder: Folder, rank: int) -> None:
    """One of the processes stops, or is interrupted."""
    _, history = run(
        data=Stateful(),
        out=folder / "kept",
        on_step=lambda record: rank == 0 or record.step < 2,
        **KEPT,
    )
    results["stopped"] = len(history["loss"])

    def interrupted(step: int) -> torch.Tensor:
        if step == 3 and rank == 1:
            signal.raise_signal(signal.SIGINT)
        return batch(step)

    results["interrupted"] = attempt(
        lambda: run(data=interrupted, out=folder / "interrupted", **KEPT)
    )
    results["handlers"] = signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def lost(results: Results, folder: Folder, rank: int) -> None:
    """The first one is killed; what the others see, and how fast."""

    def data(step: int) -> torch.Tensor:
        if step == 3 and rank == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return batch(step)

    begin = time.monotonic()
    results["lost"] = attempt(lambda: run(data=data, out=folder / "lost", **KEPT))
    results["seconds"] = time.monotonic() - begin


def main() -> None:
    kind, folder = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(1)
    if kind == "three":  # else torchrun has set all that fit needs
        distributed.init_process_group(
            "gloo",
            init_method=f"file://{folder}/store",
            rank=int(sys.argv[3]),
            world_size=3,
            timeout=timedelta(seconds=60),
        )
    rank = int(os.environ.get("RANK", sys.argv[-1]))
    results: Results = {}
    weights: dict[str, Any] = {}
    if kind == "two":
        all_runs(results, weights, rank, list(RUNS))
        model, results["encoder"] = encoder_run(seed=rank + 1, accumulate=1)
        weights["encoder"] = dict(model.state_dict())
        for optimizer in ("sgd", "adamw"):
            model, results[f"vit-{optimizer}"] = vit_run(rank + 1, optimizer)
            weights[f"vit-{optimizer}"] = dict(model.state_dict())
        world = distributed.group.WORLD
        results["timeout"] = world._get_backend(
            torch.device("cpu")
        ).options._timeout.total_seconds()
        errors(results, rank)
        stops(results, folder, rank)
    else:
        all_runs(results, weights, rank, ["adamw"])
        model, results["resumed"] = run(data=Stateful(), out=folder / "kept", seed=rank + 4, **KEPT)
        weights["resumed"] = cases.values(model)
        lost(results, folder, rank)
    torch.save(weights, folder / f"{kind}-{rank}.pt")
    (folder / f"{kind}-{rank}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main()
