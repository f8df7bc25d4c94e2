"""How fast a training run is: a line now and then."""

import sys
import time

import torch

from paperlab import nn, train

_PROBE_SIZE = 768  # of the matrices whose product is the roof: a tenth of a second on two cores


def flops_per_token(model: nn.Decoder, length: int) -> float:
    """Forward and backward: 6 for each weight of a product, and causal attention over `length`."""
    weights = dict(model.named_parameters())
    head = model.tensor("head").numel()
    linear = [
        weights[f"{name}.weight"].numel() if f"{name}.weight" in weights else head
        for name in model.linear_names()
    ]
    config = model.config
    width: int = config["num_attention_heads"] * (
        config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    )
    num_layers: int = config["num_hidden_layers"]
    return 6.0 * sum(linear) + 6.0 * num_layers * width * length


def product_rate(dtype: torch.dtype) -> float:
    """Floating-point operations a second of a matrix product, the best of three."""
    x = torch.ones(_PROBE_SIZE, _PROBE_SIZE, dtype=dtype)
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        torch.mm(x, x)
        seconds.append(time.perf_counter() - start)
    return 2.0 * _PROBE_SIZE**3 / min(seconds[1:])


class Progress:
    """A line on stdout for a step now and then: loss, speed, the time that is left."""

    def __init__(self, steps: int, tokens: int, flops: float, roof: float, dtype: str) -> None:
        self._steps, self._tokens, self._flops = steps, tokens, flops
        self._roof, self._dtype = roof, dtype
        self._start = self._last = time.perf_counter()
        self._first: int | None = None
        self._pause = 0.0
        self._every = 2.0 if sys.stdout.isatty() else 10.0

    def pause(self, seconds: float) -> None:
        """Time that was not spent on steps."""
        self._pause += seconds

    def show(self, record: train.StepRecord) -> None:
        """Prints a line if it is time for one."""
        now = time.perf_counter()
        if self._first is None:
            self._first, self._start = record.step, now  # without the first step, which warms up
        is_last = record.step + 1 == self._steps
        if self._first < record.step and not is_last and now - self._last < self._every:
            return
        self._last = now
        line = f"step {record.step + 1:,} of {self._steps:,}  loss {record.loss:.4f}"
        count, seconds = record.step - self._first, now - self._start - self._pause
        if count and seconds > 0:
            line += self._speed(count / seconds, self._steps - record.step - 1)
        print(line, flush=True)

    def _speed(self, steps_a_second: float, steps_left: int) -> str:
        left = int(steps_left / steps_a_second)
        rate = steps_a_second * self._tokens
        return (
            f"  {rate:,.0f} tokens/s  {left // 60}:{left % 60:02} left  "
            f"{rate * self._flops / 1e9:.1f} GFLOP/s by the model's size, "
            f"{100 * rate * self._flops / self._roof:.0f} % of a {self._dtype} matrix product's"
        )
