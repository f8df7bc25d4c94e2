"""The command line of `./paperlab train`."""

import argparse
import contextlib
import fcntl
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import paperlab
from paperlab import eval as evaluation
from paperlab import nn, train
from paperlab._commands import _line, _train_card, _train_config, _train_data
from paperlab._commands._line import UsageError
from paperlab._commands._train_config import Config

_SCHEMA = 1
_PROBE_SIZE = 768  # of the matrices whose product is the roof: a tenth of a second on two cores


def _parser() -> _line.Parser:
    parser = _line.Parser("train", "Trains a decoder as a config says.")
    parser.add_argument("--config", metavar="FILE", help="what to train, on what, how")
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], help="overrides one value"
    )
    parser.add_argument("--out", metavar="DIR", help="of the run (results/train/NAME)")
    parser.add_argument(
        "--resume", type=_line.choice_of("value of --resume", ("auto", "never")), default="auto"
    )
    parser.add_argument("--print-config", action="store_true", help="print all values and end")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Trains; returns the exit code."""
    options = _parser().parse(arguments, "config")
    return _line.run("train", lambda: _train(options))


def _train(options: argparse.Namespace) -> None:
    config = _train_config.read(Path(options.config), options.set)
    if options.print_config:
        print(json.dumps(config, indent=2, ensure_ascii=False))
        return
    out = Path(options.out or Path("results/train") / Path(options.config).stem)
    out.mkdir(parents=True, exist_ok=True)
    done = _read(out / "result.json") if options.resume == "auto" else None
    if done is not None and done.get("config") == config:
        print(f"{out} is complete: {_summary(done)}")
        return
    texts = _train_data.open_texts(config)
    run = {"schema": _SCHEMA, "version": paperlab.__version__, "config": config}
    run["data"] = texts.record | {
        "weights": texts.sampler.weights,
        "tokens": {name: texts.tokens.counts[name]["train"].tokens for name in texts.sampler.names},
    }
    model = _model(options.config, config, texts)
    work = _Run(out, run, texts, model, options)
    with _taken(out):
        _begin(out, run, options.resume)
    result = work.execute()
    _save(out, run, texts, model, result)
    print(f"{out / 'model'}: {_summary(result)}")


def _read(path: Path) -> Config | None:
    """What the file holds; None if there is none."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        raise ValueError(f"'{path}': malformed; --resume never begins anew") from None
    if not isinstance(value, dict) or not isinstance(value.get("schema"), int):
        raise ValueError(f"'{path}': malformed; --resume never begins anew")
    if value["schema"] > _SCHEMA:
        raise UsageError(f"'{path}' is of a newer version of paperlab")
    return value


@contextlib.contextmanager
def _taken(out: Path) -> Iterator[None]:
    """The directory's lock, as `train.fit` takes it."""
    with (out / "lock").open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(f"{out}: another run is writing there") from None
        yield


def _begin(out: Path, run: Config, resume: str) -> None:
    """Writes run.json; what a run with other values left is refused, or removed."""
    before = _read(out / "run.json") if resume == "auto" else None
    if before is not None:
        _train_config.check_unchanged(f"'{out}'", before["config"], run["config"])
        for key in ("manifest_sha256", "tokens_sha256"):
            if before["data"][key] != run["data"][key]:
                raise ValueError(f"'{out}' holds a run on other data; --resume never begins anew")
    else:
        (out / "evaluations.jsonl").unlink(missing_ok=True)
    (out / "result.json").unlink(missing_ok=True)
    _write(out / "run.json", json.dumps(run, indent=2, ensure_ascii=False) + "\n")


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _model(source: str, config: Config, texts: _train_data.Texts) -> nn.Decoder:
    """The model to begin with, which can read the data."""
    options, tokens = config["model"], texts.tokens
    if options["from"] is not None:
        directory = _line.model_directory(options["from"])
        model = nn.load(directory, dtype=options["dtype"])
    else:
        mark = tokens.separator
        defaults = {"vocab_size": tokens.vocab_size, "bos_token_id": None, "eos_token_id": mark}
        settings = defaults | options["config"]
        try:
            model = nn.from_config(
                settings, init=options["init"], seed=options["seed"], dtype=options["dtype"]
            )
        except ValueError as error:
            text = str(error).removeprefix("config: ")
            raise UsageError(f"{source}: model.config: {text}") from None
    if tokens.vocab_size > model.vocab_size:
        raise ValueError(
            f"vocabulary mismatch: the data have {tokens.vocab_size} tokens, the model "
            f"{model.vocab_size}"
        )
    if config["data"]["length"] > model.max_positions:
        raise UsageError(
            f"{source}: data.length {config['data']['length']} is more than the model's "
            f"{model.max_positions} positions"
        )
    return model


def _flops_per_token(model: nn.Decoder, length: int) -> float:
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


def _product_rate(dtype: torch.dtype) -> float:
    """Floating-point operations a second of a matrix product, the best of three."""
    x = torch.ones(_PROBE_SIZE, _PROBE_SIZE, dtype=dtype)
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        torch.mm(x, x)
        seconds.append(time.perf_counter() - start)
    return 2.0 * _PROBE_SIZE**3 / min(seconds[1:])


class _Progress:
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


class _Evaluations:
    """evaluations.jsonl: a line for each measurement, of the steps that count."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._is_open = False

    def keep(self, steps: int) -> Config | None:
        """Drops those after so many steps, once; returns the last that is left."""
        lines = []
        with contextlib.suppress(FileNotFoundError):
            for line in self._path.read_text(encoding="utf-8").splitlines():
                value = json.loads(line)
                if value["steps"] <= steps:
                    lines.append(value)
        if not self._is_open and self._path.exists():
            _write(self._path, "".join(f"{json.dumps(value)}\n" for value in lines))
        self._is_open = True
        return lines[-1] if lines else None

    def append(self, value: Config) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(value) + "\n")


class _Run:
    """Training with measurements in between."""

    def __init__(
        self,
        out: Path,
        run: Config,
        texts: _train_data.Texts,
        model: nn.Decoder,
        options: argparse.Namespace,
    ) -> None:
        self._out, self._config, self._texts, self._model = out, run["config"], texts, model
        self._source, self._resume = options.config, options.resume
        self._options: Config | None = self._config["eval"]
        self._held_out = texts.held_out(self._options) if self._options else {}
        self._evaluations = _Evaluations(out / "evaluations.jsonl")
        self._newest: Config | None = None
        self._has_begun = False
        length = self._config["data"]["length"]
        tokens = self._config["training"]["batch_size"] * length
        precision = self._config["training"]["precision"]
        dtype = torch.bfloat16 if precision else next(model.parameters()).dtype
        self._progress = _Progress(
            self._config["training"]["steps"],
            tokens,
            _flops_per_token(model, length),
            _product_rate(dtype),
            str(dtype).removeprefix("torch."),
        )

    def execute(self) -> Config:
        """Trains to the end; the content of result.json."""
        training = dict(self._config["training"])
        training.pop("batch_size")
        try:
            history = train.fit(
                self._model,
                self._texts.sampler,
                **training,
                out=self._out,
                resume=self._resume,
                on_step=self._on_step,
            )
        except ValueError as error:
            raise self._named(error) from None
        steps = len(history["loss"])
        self._newest = self._evaluations.keep(steps)
        if self._options and (self._newest is None or self._newest["steps"] != steps):
            self._measure(steps)
        return {
            "schema": _SCHEMA,
            "config": self._config,
            "steps": steps,
            "parameters": sum(value.numel() for value in self._model.parameters()),
            "loss": history["loss"][-1] if steps else None,
            "evaluation": self._newest,
        }

    def _named(self, error: ValueError) -> Exception:
        """An argument of fit is a key of the config."""
        name, _, rest = str(error).removeprefix("fit: ").partition(" ")
        if not self._has_begun and name in self._config["training"]:
            return UsageError(f"{self._source}: training.{name} {rest}")
        return error

    def _on_step(self, record: train.StepRecord) -> Mapping[str, float] | None:
        if not self._has_begun:
            self._has_begun = True
            self._evaluations.keep(record.step)
        self._progress.show(record)
        every = self._options["every"] if self._options else None
        if every is None or (record.step + 1) % every:
            return None
        start = time.perf_counter()
        result = self._measure(record.step + 1)
        self._progress.pause(time.perf_counter() - start)
        return {
            f"bits_per_byte/{name}": row["bits_per_byte"] for name, row in result["domains"].items()
        }

    def _measure(self, steps: int) -> Config:
        """Bits per byte of each domain, and a sample; prints and writes them."""
        assert self._options is not None
        length = self._config["data"]["length"]
        rows: Config = {}
        for name, documents in self._held_out.items():
            parts = [evaluation.score(self._model, d.tokens, context=length) for d in documents]
            num_bytes = sum(document.num_bytes for document in documents)
            summary = evaluation.Scores.joined(parts).summary(num_bytes=num_bytes)
            rows[name] = {"documents": len(documents), **summary}
        result: Config = {"steps": steps, "domains": rows}
        shown = ", ".join(f"{name} {row['bits_per_byte']:.4f}" for name, row in rows.items())
        print(f"step {steps:,}  held out, bits per byte: {shown}", flush=True)
        if self._options["prompt"] is not None:
            result["sample"] = self._sample(self._options["prompt"])
            print(f"step {steps:,}  sample: {json.dumps(result['sample'], ensure_ascii=False)}")
        self._evaluations.append(result)
        self._newest = result
        return result

    def _sample(self, prompt: str) -> str:
        ids = self._texts.ids(prompt)
        count = min(self._options["sample_tokens"], self._model.max_positions - len(ids))  # type: ignore[index]
        if not ids or count < 1:
            raise ValueError("eval.prompt must have a token and leave room for others")
        tokens = self._model.generate([ids], count, pad_token_id=None)
        return self._texts.text(tokens[0].tolist())


def _save(
    out: Path, run: Config, texts: _train_data.Texts, model: nn.Decoder, result: Config
) -> None:
    """DIR/model and, last, DIR/result.json."""
    directory = out / "model"
    model.save_pretrained(directory)
    if texts.tokens.tokenizer_path is not None:
        tokenizer = texts.tokens.tokenizer_path.read_text(encoding="utf-8")
    else:
        content = _train_data.byte_tokenizer(texts.tokens.separator)
        tokenizer = json.dumps(content, ensure_ascii=False, indent=1)
    _write(directory / "tokenizer.json", tokenizer)
    if not (directory / "tokenizer_config.json").exists():
        _write(
            directory / "tokenizer_config.json",
            json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}) + "\n",
        )
    _write(directory / "README.md", _train_card.card(out, run, result))
    _write(out / "result.json", json.dumps(result, indent=2, ensure_ascii=False) + "\n")


def _summary(result: Config) -> str:
    steps = result["steps"]
    text = f"{_line.counted(steps, 'step')}, loss {result['loss']:.4f}" if steps else "no step"
    rows: Mapping[str, Any] = (result["evaluation"] or {}).get("domains", {})
    if rows:
        bits = [row["bits_per_byte"] for row in rows.values()]
        text += f", {sum(bits) / len(bits):.4f} bits per byte over the domains"
    return text
