"""Training decoders and encoders: exact resumption, one line of metrics a step."""

import json
import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any, NamedTuple, Self, SupportsInt, TypeVar

import numpy.typing as npt
import torch

from paperlab import _arguments, _core, _processes
from paperlab._tokens import mask_tensor, pixel_tensor, token_tensor
from paperlab.nn import Decoder, Encoder, ImageEncoder

__all__ = ["StepRecord", "fit"]

Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]
Array = torch.Tensor | npt.NDArray[Any]
Model = Decoder | Encoder | ImageEncoder
Data = Callable[[int], Array | tuple[Array, ...]]
StepRecord = _core.StepRecord
OnStep = Callable[[StepRecord], bool | Mapping[str, float] | None]
T = TypeVar("T")
_Tensors = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]

_MOST = 2**53
_HANDLERS: dict[int, Any] = {  # those that a program has put there stay
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
}


def fit(
    model: Decoder | Encoder | ImageEncoder,
    data: Data,
    *,
    steps: int,
    optimizer: str = "adamw",
    learning_rate: float,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    no_decay: Sequence[str] = (),
    schedule: str = "constant",
    warmup_steps: int = 0,
    min_learning_rate: float = 0.0,
    clip_norm: float | None = None,
    accumulate: int = 1,
    out: Path | None = None,
    checkpoint_every: int | None = None,
    keep: int = 2,
    resume: str = "auto",
    seed: int = 0,
    momentum: float = 0.0,
    decay_steps: int = 0,
    shard_optimizer: bool = False,
    precision: str | None = None,
    on_step: OnStep | None = None,
) -> dict[str, list[float]]:
    """Trains a model in place; returns `loss`, `grad_norm` (before clipping), `learning_rate`.

    The lists hold all steps, resumed ones included. The loss is the mean over the batch of the
    cross-entropy of a decoder's next token, or of an encoder's logits with the labels.

    model: what `nn.load` or `nn.from_config` returns, of encoders those that classify sequences or
    pictures, with two labels or more, one a sequence (no other `problem_type`); parameters that
    require gradients are trained. data: returns a step's batch: for a decoder integers [B, T + 1];
    for an encoder (floating pixels [B, C, H, W], labels [B]) or (tokens [B, T], labels [B][,
    attention_mask [B, T] or None[, token_type_ids [B, T]]]); labels are integers in
    0..num_labels-1, types as in `nn.Encoder.forward`. It is a function of the step alone, or has
    `state()` and `load_state(state)`, as `data.Sampler`: its state, JSON values, is kept with each
    checkpoint and given back when a run goes on.
    optimizer: adamw | sgd (`momentum`; weight_decay is added to the gradient) | adafactor, with
    the formulas of torch.optim. no_decay: fnmatch patterns of parameters that do not decay; one of
    them must match.
    schedule: learning_rate * (step + 1) / warmup_steps while step < warmup_steps, then constant |
    cosine (down to min_learning_rate at `steps`) | wsd (constant, then linear over the last
    `decay_steps`). clip_norm: of all gradients together, as `clip_grad_norm_`. accumulate: parts
    of a batch, computed one after another; must divide B. precision: "bfloat16" computes in it;
    the parameters, which must be float32, and the optimizer stay as they are.

    out: a directory for metrics.jsonl (a line a step, flushed), the same as an event file for
    TensorBoard, and checkpoints every `checkpoint_every` steps and at the end, of which the newest
    `keep` stay; each is a Hugging Face directory. resume: "auto" goes on from the newest, to the
    same bits as without interruption; "never" begins anew and removes what was there. seed: kept
    with the checkpoints. on_step: gets step, loss, grad_norm, learning_rate; False writes a
    checkpoint and stops; a mapping of names to numbers goes to the event file. Ctrl-C interrupts
    on_step, or waits for the end of the step, and writes a checkpoint before KeyboardInterrupt; a
    second one raises it as soon as data or on_step is called.

    Several processes (started by torchrun, or in a group of torch.distributed that is there) train
    together: each calls fit with the same arguments, `data` returns the global batch in each, and
    each computes its rows; B must be a multiple of accumulate times the processes. All begin with
    the first one's parameters and return the global batch's values; the first alone writes. Two
    processes add up the same numbers as one with twice `accumulate`. shard_optimizer: each keeps
    the optimizer's state of a part of the parameters; results and checkpoints are the same, and the
    first gathers the state in memory to write it. Another number of processes may go on with a run.
    on_step is called in each; one that stops, or is interrupted (SIGTERM too), stops all after the
    same step, and an error in one, of its arguments too, ends all. A process that does not answer
    is given up after $PAPERLAB_PROCESS_TIMEOUT seconds (1800) where fit joins the group.

    Raises ValueError or TypeError before any work, with model and `out` as they were, if an
    argument or the first batch is not as above, in torch.inference_mode, or if `out` holds a run
    with other settings or a metrics.jsonl of something else; ValueError naming the step and the
    first bad tensor if the loss or a gradient is not finite (the parameters are then as before the
    step), or if a parameter is not when a checkpoint is due or at the end; OSError if another run
    writes to `out`, the disk is full or another process failed; ConnectionError if another process
    ended or does not answer: without shards one that is left has then written a checkpoint of the
    last whole step. The last checkpoint stays.
    """
    settings = dict(locals())
    model, data, on_step = (settings.pop(name) for name in ("model", "data", "on_step"))

    group = _processes.group()

    def prepare() -> _Work:
        """All that Python can refuse; nothing is changed."""
        if not isinstance(model, Model):
            raise TypeError(
                f"fit: model must be a Decoder or an encoder, got {type(model).__name__}"
            )
        for name, function in {"data": data, "on_step": on_step}.items():
            if not callable(function) and (name == "data" or function is not None):
                raise TypeError(f"fit: {name} must be callable, got {type(function).__name__}")
        options = _options(**settings)
        state = _data_state(data)
        if group is not None:
            _processes.check_device(next(model.parameters()).device)
            options.set_group(group)
        model.bind()
        return _Work(model, options, _batches(model, data), state)

    try:
        return _run(_processes.together(group, prepare), on_step, group is not None)
    except ConnectionError:
        _processes.leave_what_was_joined()  # whoever waits for this process need not
        raise


class _Work(NamedTuple):
    model: Model
    options: _core.FitOptions
    batch: Callable[[SupportsInt], _Tensors]
    state: tuple[Callable[[], str] | None, Callable[[str], None] | None]


def _batches(model: Model, data: Data) -> Callable[[SupportsInt], _Tensors]:
    """A step's rows, labels, mask and types of tokens as tensors."""

    def tokens(step: SupportsInt) -> _Tensors:
        function = f"fit: data({step})"
        given: Any = data(int(step))
        if isinstance(given, tuple | list) and any(_is_matrix(x) for x in given):
            raise TypeError(
                f"{function} must return tokens [B, T + 1] alone for a decoder, got a "
                f"{type(given).__name__} of {len(given)}"
            )
        return model.token_ids(function, given), None, None, None

    def examples(step: SupportsInt) -> _Tensors:
        function = f"fit: data({step})"
        given: Any = data(int(step))
        if not isinstance(given, tuple | list) or not 2 <= len(given) <= 4:
            got = (
                f"{len(given)} values" if isinstance(given, tuple | list) else type(given).__name__
            )
            raise TypeError(
                f"{function} must return (rows, labels) or (tokens, labels, mask[, "
                f"token_type_ids]), got {got}"
            )
        labels = token_tensor(function, given[1], "[B]", 1, "labels").long()
        mask = mask_tensor(function, given[2]) if len(given) > 2 else None
        types = given[3] if len(given) > 3 else None
        if types is not None:
            types = token_tensor(function, types, "[B, T]", 2, "token_type_ids").long()
        if isinstance(model, Encoder):
            return model.token_ids(function, given[0]), labels, mask, types
        return pixel_tensor(function, given[0]), labels, mask, types

    return tokens if isinstance(model, Decoder) else examples


def _is_matrix(x: object) -> bool:
    """Whether it is a batch of its own, not a row of one."""
    if isinstance(x, tuple | list):
        return bool(x) and isinstance(x[0], tuple | list)
    return int(getattr(x, "ndim", 0)) > 1


def _options(
    steps: int,
    optimizer: str,
    learning_rate: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    no_decay: Sequence[str],
    schedule: str,
    warmup_steps: int,
    min_learning_rate: float,
    clip_norm: float | None,
    accumulate: int,
    out: Path | None,
    checkpoint_every: int | None,
    keep: int,
    resume: str,
    seed: int,
    momentum: float,
    decay_steps: int,
    shard_optimizer: bool,
    precision: str | None,
) -> _core.FitOptions:
    options = _core.FitOptions()
    options.set_schedule(
        _text("schedule", schedule),
        _count("steps", steps),
        _arguments.real("fit", "learning_rate", learning_rate),
        _arguments.real("fit", "min_learning_rate", min_learning_rate),
        _count("warmup_steps", warmup_steps),
        _count("decay_steps", decay_steps),
    )
    if not isinstance(betas, list | tuple) or len(betas) != 2:
        raise ValueError(f"fit: betas must be two numbers, got {betas!r:.60}")
    options.set_optimizer(
        _text("optimizer", optimizer),
        _arguments.real("fit", "betas", betas[0]),
        _arguments.real("fit", "betas", betas[1]),
        _arguments.real("fit", "eps", eps),
        _arguments.real("fit", "momentum", momentum),
    )
    options.weight_decay = _arguments.real("fit", "weight_decay", weight_decay)
    if not isinstance(no_decay, list | tuple | set | frozenset):
        raise TypeError(f"fit: no_decay must be a list of str, got {type(no_decay).__name__}")
    options.no_decay = sorted(_text("no_decay", pattern) for pattern in no_decay)
    if clip_norm is not None:
        options.clip_norm = _arguments.real("fit", "clip_norm", clip_norm)
    if precision not in (None, "bfloat16"):
        raise ValueError(f"fit: precision must be None or bfloat16, got {precision!a:.60}")
    options.computes_in_bfloat16 = precision is not None
    options.accumulate = _arguments.integer("fit", "accumulate", accumulate, 1, _MOST)
    options.out = b"" if out is None else _path("out", out)
    options.checkpoint_every = (
        0
        if checkpoint_every is None
        else _arguments.integer("fit", "checkpoint_every", checkpoint_every, 1, _MOST)
    )
    options.keep = _arguments.integer("fit", "keep", keep, 1, _MOST)
    if resume not in ("auto", "never"):
        raise ValueError(f"fit: resume must be auto or never, got {resume!r:.60}")
    options.resumes = resume == "auto"
    options.seed = _arguments.integer("fit", "seed", seed, 0, 2**64 - 1)
    options.shards_optimizer = _arguments.boolean("fit", "shard_optimizer", shard_optimizer)
    return options


def _run(work: _Work, on_step: OnStep | None, has_others: bool) -> dict[str, list[float]]:
    with _Interruption(signal.SIGINT, *([signal.SIGTERM] if has_others else [])) as interruption:

        def after(record: StepRecord) -> tuple[bool, bool, dict[str, float]]:
            reply = None if on_step is None else interruption.during(lambda: on_step(record))
            measures = _measures(reply) if isinstance(reply, Mapping) else {}
            return reply is not False, interruption.is_asked, measures

        losses, norms, rates, is_interrupted = _core.fit(
            work.model.core, work.options, work.batch, after, *work.state
        )
    if is_interrupted or interruption.is_asked:
        raise KeyboardInterrupt
    return {"loss": losses, "grad_norm": norms, "learning_rate": rates}


def _data_state(
    data: object,
) -> tuple[Callable[[], str] | None, Callable[[str], None] | None]:
    """Reads and sets the state of the data as JSON text; None for a plain function."""
    get, put = getattr(data, "state", None), getattr(data, "load_state", None)
    if not callable(get) or not callable(put):
        return None, None

    def state() -> str:
        try:
            text = json.dumps(get(), allow_nan=False, ensure_ascii=False)
            text.encode()  # not every str is UTF-8
            return text
        except (TypeError, ValueError, RecursionError) as error:
            raise TypeError(f"fit: data.state() must return JSON values: {error}") from None

    state()  # refused before any work
    return state, lambda text: put(json.loads(text))


class _Interruption:
    """Ctrl-C as a wish that the end of the step grants; a second one interrupts at once."""

    def __init__(self, *signals: signal.Signals) -> None:
        self.is_asked = False
        self._is_callback = False
        self._signals = signals
        self._previous: dict[signal.Signals, Any] = {}

    def during(self, callback: Callable[[], T]) -> T | None:
        """Returns callback(), which the first Ctrl-C interrupts too; None then."""
        self._is_callback = True
        try:
            return callback()
        except KeyboardInterrupt:
            self.is_asked = True
            return None
        finally:
            self._is_callback = False

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in self._signals:
                if signal.getsignal(number) is _HANDLERS[number]:
                    self._previous[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        was_asked, self.is_asked = self.is_asked, True
        if number == signal.SIGINT and (was_asked or self._is_callback):
            signal.default_int_handler(number, frame)


def _measures(reply: Mapping[str, float]) -> dict[str, float]:
    return {_text("on_step's names", name): _measure(name, v) for name, v in reply.items()}


def _measure(name: str, value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        got = type(value).__name__
        raise TypeError(f"fit: on_step's {name!r:.60} must be a number, got {got}") from None


def _path(name: str, value: Path) -> bytes:
    try:
        encoded = os.fsencode(value)
    except TypeError:
        raise TypeError(f"fit: {name} must be a path, got {type(value).__name__}") from None
    if not encoded or b"\0" in encoded:
        raise ValueError(f"fit: {name} must be a path, got {value!a:.60}")
    return encoded


def _count(name: str, value: int) -> int:
    return _arguments.integer("fit", name, value, 0, _MOST)


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"fit: {name} must be a str, got {type(value).__name__}")
    return value
