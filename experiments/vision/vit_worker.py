"""Trains models of transformers' ViT: each line of stdin is a job as JSON, progress on stdout.

A job has the folder to make, that of the pictures and the manifest, whose `request` is the recipe.
The folder then holds

    manifest.json   recipe.sha256, made_by, request
    initial/        the model before the first step, as save_pretrained writes it
    trained/        the model after the last one
    run.npz         rows       int32 [steps, batch]: pictures of each step's batch
                    test_rows  int32 [M]: those that are held out
                    loss, grad_norm  float64 [steps]
                    moved_loss float64 [n]: of the first steps of the same run, but from initial
                               weights that are each moved to a neighbouring number
                    eval_step  int32 [e], accuracy float64 [e]: steps done, share of test pictures
                    logits     [M, classes] of the trained model

where pictures are counted through all splits, train before valid before test. A run uses one
thread, so that it has the same bits each time; what is interrupted goes on from its last
evaluation. The
process ends when its stdin does: with its parent.
"""

from __future__ import annotations

import fcntl
import json
import os
import queue
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

Request = dict[str, Any]
Arrays = dict[str, Any]

SPLITS = ("train", "valid", "test")
NUM_CLASSES = 10
EVAL_BATCH = 500


class Recipe:
    """What a request says about pictures and batches."""

    def __init__(self, request: Request, images: Path) -> None:
        self.request = request
        there = [split for split in SPLITS if (images / f"{split}_labels.npy").exists()]
        self.pixels = np.concatenate([np.load(images / f"{s}_images.npy") for s in there])
        self.labels = np.concatenate([np.load(images / f"{s}_labels.npy") for s in there])
        self.train_rows, self.test_rows = self._split(len(np.load(images / "test_labels.npy")))
        self.rows = self._batches()

    def _split(self, published: int) -> tuple[Any, Any]:
        """The published test split, or so many pictures by a permutation."""
        count = self.request["test_images"]
        order = np.arange(len(self.labels))
        if count:
            order = np.random.RandomState(self.request["split_seed"]).permutation(order)
        num_train = len(order) - (count or published)
        return order[:num_train], order[num_train:].astype(np.int32)

    def _batches(self) -> Any:
        """Each epoch in an order of its own; what is left of it is dropped."""
        size, most = self.request["batch_size"], self.request["max_steps"]
        random = np.random.RandomState(self.request["seed"])
        per_epoch = len(self.train_rows) // size
        epochs = [
            random.permutation(self.train_rows)[: per_epoch * size].reshape(per_epoch, size)
            for _ in range(self.request["epochs"])
        ]
        return np.concatenate(epochs).astype(np.int32)[: most or None]


class Training:
    """One model, its optimizer and where it stands."""

    def __init__(self, recipe: Recipe) -> None:
        import torch
        from transformers import ViTConfig, ViTForImageClassification

        self.recipe, self.request = recipe, recipe.request
        self.dtype = getattr(torch, self.request["dtype"])
        height = recipe.pixels.shape[1]
        sizes: Request = {
            "hidden_size": self.request["d_model"],
            "num_hidden_layers": self.request["num_layers"],
            "num_attention_heads": self.request["num_heads"],
            "intermediate_size": self.request["ffn"],
            "image_size": height,
            "patch_size": self.request["patch"],
            "num_channels": 1,
            "num_labels": NUM_CLASSES,
        }
        torch.manual_seed(self.request["seed"])
        model: Any = ViTForImageClassification(ViTConfig(**sizes))
        self.model = model.to(self.request["device"], self.dtype).train()
        decayed: list[Any] = []
        others: list[Any] = []
        for name, value in self.model.named_parameters():
            plain = value.dim() < 2 or name.endswith(("cls_token", "position_embeddings"))
            (others if plain else decayed).append(value)
        groups = [
            {"params": decayed, "weight_decay": self.request["weight_decay"]},
            {"params": others, "weight_decay": 0.0},
        ]
        betas = (self.request["beta1"], self.request["beta2"])
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=1e-8)
        self.losses: list[float] = []
        self.grad_norms: list[float] = []
        self.evaluations: list[tuple[int, float]] = []

    def batch(self, rows: Any) -> tuple[Any, Any]:
        import torch

        device = self.request["device"]
        pixels = torch.from_numpy(self.recipe.pixels[rows]).to(self.dtype).unsqueeze(1)
        labels = torch.from_numpy(self.recipe.labels[rows].astype(np.int64))
        return (pixels / self.request["half_pixel"] - 1).to(device), labels.to(device)

    def rate(self, step: int) -> float:
        """Linear warm-up, then a cosine to a part of the highest rate."""
        steps, high = len(self.recipe.rows), self.request["learning_rate"]
        warmup = int(self.request["warmup_share"] * steps + 0.5)
        if step < warmup:
            return float(high * (step + 1) / warmup)
        low = self.request["final_rate"] * high
        angle = np.pi * (step - warmup) / (steps - warmup)
        return float(low + (high - low) / 2 * (1 + np.cos(angle)))

    def step(self) -> None:
        import torch

        step = len(self.losses)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(step)
        pixels, labels = self.batch(self.recipe.rows[step])
        loss: Any = torch.nn.functional.cross_entropy(
            self.model(pixel_values=pixels).logits, labels
        )
        self.optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.request["clip_norm"])
        self.optimizer.step()
        self.losses.append(loss.item())
        self.grad_norms.append(norm.item())

    def logits(self) -> Any:
        import torch

        self.model.eval()
        rows = self.recipe.test_rows
        with torch.no_grad():
            parts = [
                self.model(pixel_values=self.batch(rows[i : i + EVAL_BATCH])[0]).logits
                for i in range(0, len(rows), EVAL_BATCH)
            ]
        self.model.train()
        return torch.cat(parts).cpu().numpy()

    def evaluate(self) -> Any:
        logits = self.logits()
        hits = logits.argmax(1) == self.recipe.labels[self.recipe.test_rows]
        self.evaluations.append((len(self.losses), float(hits.mean())))
        return logits

    def move_weights(self) -> None:
        """Each weight to the next number above or below, by a coin."""
        import torch

        random = np.random.RandomState(self.request["seed"])
        with torch.no_grad():
            for value in self.model.parameters():
                up = torch.from_numpy(random.randint(0, 2, tuple(value.shape)).astype(bool))
                ends = torch.where(up, torch.inf, -torch.inf).to(self.dtype)
                value.copy_(torch.nextafter(value, ends.to(value.device)))

    def state(self) -> Request:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "curves": (self.losses, self.grad_norms, self.evaluations),
        }

    def load_state(self, state: Request) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.losses, self.grad_norms, self.evaluations = state["curves"]


def train(job: Request, say: Callable[[float], None]) -> None:
    """Makes a run's folder: by rename, when it is whole."""
    target = Path(job["folder"])
    part = target.with_name(f"{target.name}.part")
    with target.with_name(f"{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.exists():  # another process has made it meanwhile
            return
        part.mkdir(exist_ok=True)
        arrays = _train(job, part, say)
        np.savez(part / "run.npz", **arrays)
        (part / "manifest.json").write_text(json.dumps(job["manifest"], indent=1) + "\n")
        (part / "state.pt").unlink(missing_ok=True)
        part.replace(target)
    target.with_name(f"{target.name}.lock").unlink(missing_ok=True)


def _train(job: Request, part: Path, say: Callable[[float], None]) -> Arrays:
    import torch

    request = job["manifest"]["request"]
    recipe = Recipe(request, Path(job["images"]))
    steps, every = len(recipe.rows), request["eval_every"]
    training = Training(recipe)
    state_file = part / "state.pt"
    if state_file.exists():
        training.load_state(torch.load(state_file, weights_only=False))
    else:
        shutil.rmtree(part / "initial", ignore_errors=True)
        training.model.save_pretrained(part / "initial")
    logits = None
    while (step := len(training.losses)) < steps:
        training.step()
        say((step + 1) / steps)
        if (step + 1) % every == 0 or step + 1 == steps:
            logits = training.evaluate()
            if step + 1 < steps:
                torch.save(training.state(), part / "state.tmp")
                (part / "state.tmp").replace(state_file)
    training.model.save_pretrained(part / "trained")
    eval_step, accuracy = zip(*training.evaluations, strict=True)
    return {
        "rows": recipe.rows,
        "test_rows": recipe.test_rows,
        "loss": np.array(training.losses),
        "grad_norm": np.array(training.grad_norms),
        "moved_loss": np.array(list(_moved_losses(recipe))),
        "eval_step": np.array(eval_step, np.int32),
        "accuracy": np.array(accuracy),
        "logits": logits if logits is not None else training.logits(),
    }


def _moved_losses(recipe: Recipe) -> Iterator[float]:
    moved = Training(recipe)
    moved.move_weights()
    for _ in range(min(recipe.request["moved_steps"], len(recipe.rows))):
        moved.step()
        yield moved.losses[-1]


def _read_jobs(jobs: queue.SimpleQueue[Request]) -> None:
    for line in sys.stdin:
        jobs.put(json.loads(line))
    os._exit(0)  # the parent needs no more, or has ended


class Speaker:
    """Says how far a job is, now and then."""

    def __init__(self) -> None:
        self._shown = 0.0

    def __call__(self, share: float) -> None:
        if time.monotonic() - self._shown > 0.5:
            self._shown = time.monotonic()
            print(f"SHARE {share}", flush=True)


def main() -> None:
    jobs: queue.SimpleQueue[Request] = queue.SimpleQueue()
    threading.Thread(target=_read_jobs, args=(jobs,), daemon=True).start()
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.set_num_threads(1)
    while True:
        train(jobs.get(), Speaker())
        print("DONE", flush=True)


if __name__ == "__main__":
    main()
