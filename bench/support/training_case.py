"""A byte model trained by paperlab, by LibTorch's operators, and by those through torch.compile:
the same initial values, batches and settings, step by step in turns, in a process of its own."""

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import paperlab
import torch
from support.measured import Times
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

VOCAB_SIZE = 256
EPS = 1e-5
ROPE_BASE = 10000.0
LEARNING_RATE, BETAS, ADAM_EPS, WEIGHT_DECAY, CLIP_NORM = 1e-3, (0.9, 0.95), 1e-8, 0.1, 1.0
NO_DECAY = "norm.weight"

Weights = dict[str, torch.Tensor]
LossFunction = Callable[[Weights, torch.Tensor], torch.Tensor]
Parts = dict[str, float]  # microseconds


@dataclass(frozen=True)
class Shape:
    """Of a Llama-like model, untied, and of its batches."""

    length: int
    batch_size: int
    layers: int = 8
    width: int = 256
    heads: int = 4
    ffn: int = 688

    @property
    def tokens(self) -> int:
        return self.length * self.batch_size

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    def config(self) -> dict[str, object]:
        return {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "vocab_size": VOCAB_SIZE,
            "hidden_size": self.width,
            "intermediate_size": self.ffn,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads,
            "max_position_embeddings": max(2048, self.length),
            "rms_norm_eps": EPS,
            "rope_theta": ROPE_BASE,
            "tie_word_embeddings": False,
        }

    def product_flops(self) -> float:
        """Of the linear maps of a forward pass; their gradients are twice as many."""
        numbers = self.layers * (4 * self.width**2 + 3 * self.width * self.ffn)
        return 2.0 * self.tokens * numbers

    def head_flops(self) -> float:
        return 2.0 * self.tokens * self.width * VOCAB_SIZE

    def attention_flops(self) -> float:
        """Of keys that are seen, forward; the gradients count as twice as many."""
        seen = self.batch_size * self.length * (self.length + 1) / 2
        return 4.0 * self.layers * self.width * seen

    def flops(self) -> float:
        return 3.0 * (self.product_flops() + self.head_flops() + self.attention_flops())


@dataclass(frozen=True)
class Training:
    """What a process measures."""

    shape: Shape
    threads: int
    steps: int
    compiler: str  # of torch.compile; empty: that row is not wanted
    profiles: bool


@dataclass
class Contestant:
    times: Times = field(default_factory=Times)
    losses: list[float] = field(default_factory=list)
    parts: Parts = field(default_factory=dict)  # of one profiled step
    failure: str = ""  # why there is nothing


def eager_loss(shape: Shape) -> LossFunction:
    """The mean cross-entropy of the next byte by LibTorch's operators."""
    exponents = torch.arange(0, shape.head_dim, 2, dtype=torch.float64) / shape.head_dim
    angles = torch.outer(torch.arange(shape.length, dtype=torch.float64), ROPE_BASE**-exponents)
    cos = torch.cat([angles.cos()] * 2, -1).float()
    sin = torch.cat([angles.sin()] * 2, -1).float()

    def rotated(x: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat((-second, first), -1) * sin

    def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(x, (shape.width,), weight, EPS)

    def attend(weights: Weights, block: str, x: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            functional.linear(x, weights[f"{block}self_attn.{name}_proj.weight"])
            .view(*x.shape[:2], shape.heads, shape.head_dim)
            .transpose(1, 2)
            for name in "qkv"
        )
        heads = functional.scaled_dot_product_attention(
            rotated(query), rotated(key), value, is_causal=True
        )
        joined = heads.transpose(1, 2).reshape(x.shape)
        return functional.linear(joined, weights[f"{block}self_attn.o_proj.weight"])

    def feed_forward(weights: Weights, block: str, x: torch.Tensor) -> torch.Tensor:
        gate = functional.linear(x, weights[f"{block}mlp.gate_proj.weight"])
        up = functional.linear(x, weights[f"{block}mlp.up_proj.weight"])
        return functional.linear(
            functional.silu(gate) * up, weights[f"{block}mlp.down_proj.weight"]
        )

    def loss(weights: Weights, tokens: torch.Tensor) -> torch.Tensor:
        x = functional.embedding(tokens[:, :-1], weights["model.embed_tokens.weight"])
        for layer in range(shape.layers):
            block = f"model.layers.{layer}."
            x = x + attend(weights, block, norm(x, weights[f"{block}input_layernorm.weight"]))
            y = norm(x, weights[f"{block}post_attention_layernorm.weight"])
            x = x + feed_forward(weights, block, y)
        logits = functional.linear(norm(x, weights["model.norm.weight"]), weights["lm_head.weight"])
        return functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    return loss


class TorchTrainer:
    """Fused AdamW and clipping by the foreach functions."""

    def __init__(self, loss: LossFunction, initial: Weights) -> None:
        self.loss = loss
        self.weights = {name: x.detach().clone().requires_grad_() for name, x in initial.items()}
        groups: list[dict[str, Any]] = [
            {"params": [x for n, x in self.weights.items() if not n.endswith(NO_DECAY)]},
            {
                "params": [x for n, x in self.weights.items() if n.endswith(NO_DECAY)],
                "weight_decay": 0.0,
            },
        ]
        self.optimizer = torch.optim.AdamW(
            groups,
            lr=LEARNING_RATE,
            betas=BETAS,
            eps=ADAM_EPS,
            weight_decay=WEIGHT_DECAY,
            fused=True,
        )

    def warm_up(self, tokens: torch.Tensor) -> None:
        """What the first call does besides: compilation."""
        self.loss(self.weights, tokens).backward()  # type: ignore[no-untyped-call]
        self.optimizer.zero_grad()

    def step(self, tokens: torch.Tensor) -> float:
        loss = self.loss(self.weights, tokens)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.weights.values(), CLIP_NORM, foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()


# Names of operators in order of precedence, by the part of a step that they are.
_PARTS = {
    "attention": ("paperlab::attention", "aten::_scaled_dot_product", "aten::scaled_dot_product"),
    "head and loss": ("paperlab::linear_cross_entropy", "log_softmax", "nll_loss"),
    "matrix products": ("paperlab::linear", "aten::mm", "aten::addmm", "aten::linear"),
    "RMSNorm": ("paperlab::rms_norm", "rms_norm", "RmsNorm"),
    "rotation": ("paperlab::rope",),
    "SwiGLU": ("paperlab::swiglu", "aten::silu"),
    "AdamW and clipping": ("adamw", "AdamW", "clip_grad", "vector_norm", "_foreach_"),
}
HAS_DIRECTION = ("attention", "matrix products")
REST = "the rest"


@cache
def part_of(name: str) -> str:
    return next((p for p, names in _PARTS.items() if any(n in name for n in names)), "")


def parts_of(profiler: profile) -> Parts:
    """Where the time went, in microseconds by part, forward and backward apart where both are
    products: an operator and what it calls count as the innermost part that has a name."""
    parts: Parts = defaultdict(float)
    for event in profiler.events() or ():  # type: ignore[no-untyped-call]
        part, is_backward, at = "", False, event
        while at is not None:
            part = part or part_of(at.name)
            is_backward = is_backward or at.name.startswith("autograd::engine")
            at = at.cpu_parent
        if part in HAS_DIRECTION:
            part += ", backward" if is_backward else ", forward"
        parts[part or REST] += event.self_cpu_time_total
    return dict(parts)


class Stopwatch:
    """Times a step, and profiles the one step that is asked for."""

    def __init__(self, contestant: Contestant, profiled_step: int) -> None:
        self.contestant = contestant
        self.profiled_step = profiled_step
        self.profiler: profile | None = None
        self.begin = (0.0, 0.0)

    def start(self, step: int) -> None:
        sleep_until_idle()
        if step == self.profiled_step:
            self.profiler = profile(activities=[ProfilerActivity.CPU], acc_events=True)
            self.profiler.start()
        self.begin = (time.perf_counter(), time.process_time())

    def stop(self, loss: float) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        if self.profiler is not None:
            self.profiler.stop()
            parts = parts_of(self.profiler)
            # Between operators: what the profiler does not see.
            parts[REST] = (wall - self.begin[0]) * 1e6 - sum(
                us for part, us in parts.items() if part != REST
            )
            self.contestant.parts, self.profiler = parts, None
        else:
            self.contestant.times.wall.append((wall - self.begin[0]) * 1e6)
            self.contestant.times.cpu.append((cpu - self.begin[1]) * 1e6)
        self.contestant.losses.append(loss)


def sleep_until_idle() -> None:
    """Until threads that the last contestant left spinning are asleep."""
    for _ in range(50):
        before = time.process_time()
        time.sleep(0.001)
        if time.process_time() - before < 1e-4:
            return


def text_of_sample() -> torch.Tensor:
    with tempfile.TemporaryDirectory() as folder:
        corpus = paperlab.data.load("sample", cache=Path(folder))
        documents = (d for domain in corpus.values() for split in domain.values() for d in split)
        return torch.frombuffer(bytearray(b"".join(documents)), dtype=torch.uint8).long()


def batches(shape: Shape) -> Callable[[int], torch.Tensor]:
    text = text_of_sample()

    def batch(step: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(step)
        most = len(text) - shape.length
        starts = torch.randint(most, (shape.batch_size,), generator=generator).tolist()
        return torch.stack([text[start : start + shape.length + 1] for start in starts])

    return batch


def compiled_trainer(
    training: Training, initial: Weights, tokens: torch.Tensor, contestant: Contestant
) -> TorchTrainer | None:
    """None, with the reason in the contestant, where there is no compiler or it fails."""
    try:
        compiled = torch.compile(eager_loss(training.shape), backend=training.compiler)
        trainer = TorchTrainer(compiled, initial)
        trainer.warm_up(tokens)
    except Exception as error:  # of the compiler's many
        contestant.failure = f"{type(error).__name__}: {error}".splitlines()[0]
        return None
    return trainer


def measure_training(training: Training) -> dict[str, Contestant]:
    """Each contestant does each step once, in turns: `ours`, `eager`, and `compiled`."""
    torch.set_num_threads(training.threads)
    shape = training.shape
    batch = batches(shape)
    model = paperlab.nn.from_config(shape.config(), seed=1)
    initial = {name: x.detach().clone() for name, x in model.named_parameters()}
    contestants = {"ours": Contestant(), "eager": Contestant()}
    rivals = {"eager": TorchTrainer(eager_loss(shape), initial)}
    if training.compiler:
        contestants["compiled"] = Contestant()
        compiled = compiled_trainer(training, initial, batch(0), contestants["compiled"])
        if compiled is not None:
            rivals["compiled"] = compiled
    # The profiled step comes last, so that it disturbs no other.
    profiled = training.steps if training.profiles else -1
    watches = {name: Stopwatch(c, profiled) for name, c in contestants.items()}

    def data(step: int) -> torch.Tensor:
        tokens = batch(step)
        watches["ours"].start(step)
        return tokens

    def on_step(record: paperlab.train.StepRecord) -> None:
        watches["ours"].stop(record.loss)
        tokens = batch(record.step)
        for name, rival in rivals.items():
            watches[name].start(record.step)
            watches[name].stop(rival.step(tokens))

    paperlab.train.fit(
        model,
        data,
        steps=training.steps + int(training.profiles),
        learning_rate=LEARNING_RATE,
        betas=BETAS,
        eps=ADAM_EPS,
        weight_decay=WEIGHT_DECAY,
        no_decay=[f"*{NO_DECAY}"],
        clip_norm=CLIP_NORM,
        on_step=on_step,
    )
    for contestant in contestants.values():
        for values in (contestant.times.wall, contestant.times.cpu):
            del values[: min(2, len(values) - 1)]  # states are new, memory too
    return contestants


def loss_difference(one: Contestant, other: Contestant) -> float:
    """The largest of any step."""
    return max(abs(a - b) for a, b in zip(one.losses, other.losses, strict=True))
