"""The command line of `./paperlab train`."""

import argparse
import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import paperlab
from paperlab import data, nn, train
from paperlab import eval as evaluation
from paperlab._commands import (
    _line,
    _train_card,
    _train_config,
    _train_data,
    _train_files,
    _train_processes,
    _train_progress,
)
from paperlab._commands._line import UsageError
from paperlab._commands._train_config import Config

_SCHEMA = 1


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
    parser.add_argument(
        "--processes", metavar="N", type=_line.whole(1, 1024), default=1, help="of this machine"
    )
    parser.add_argument("--print-config", action="store_true", help="print all values and end")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Trains; returns the exit code."""
    options = _parser().parse(arguments, "config")
    return _line.run("train", lambda: _train(options))


def follow(arguments: Sequence[str]) -> int:
    """Trains as one of the other processes of `--processes N`; returns the exit code."""
    task = _train_processes.attach(arguments)
    code = _line.run("train", lambda: _follow(task["source"], task["config"], Path(task["out"])))
    _train_processes.detach(code)
    return code


def _train(options: argparse.Namespace) -> None:
    config = _train_config.read(Path(options.config), options.set)
    if options.print_config:
        print(json.dumps(config, indent=2, ensure_ascii=False))
        return
    _check_processes(options, config)
    out = Path(options.out or Path("results/train") / Path(options.config).stem)
    done = _read(out / "result.json", "config") if options.resume == "auto" else None
    if done is not None and done["config"] == config and _has_step(out, config):
        print(f"{out} is complete: {_summary(done)}")
        return
    if _train_processes.is_follower():
        _train_processes.join()  # when the first has opened the texts
        _follow(options.config, config, out)
        return
    texts = _train_data.open_texts(options.config, config, print)
    run = {"schema": _SCHEMA, "version": paperlab.__version__, "config": config}
    run["licence"] = _train_card.licence_of(config)
    run["data"] = texts.record | {
        "weights": texts.sampler.weights,
        "tokens": {name: texts.tokens.counts[name]["train"].tokens for name in texts.sampler.names},
    }
    model = _model(options.config, config, texts)
    with _taken(out):
        work = _Run(out, run, texts, model, options)
        _train_files.write_tokenizer(config, out, texts)
        _train_files.set_tokenizer(model, config, out, texts)
        result = work.execute()
        model.save_pretrained(out / "model")
        _train_files.write(out / "model/README.md", _train_card.card(out, run, result))
        _train_files.write(
            out / "result.json", json.dumps(result, indent=2, ensure_ascii=False) + "\n"
        )
    print(f"{out / 'model'}: {_summary(result)}")


def _check_processes(options: argparse.Namespace, config: Config) -> None:
    if options.processes > 1 and _train_processes.size(1) > 1:
        raise UsageError("--processes does not go with torchrun, which has started several")
    count = _train_processes.size(options.processes)
    training = config["training"]
    if training["batch_size"] % (training["accumulate"] * count):
        times = "" if count == 1 else f" times the {count} processes"
        raise UsageError(
            f"{options.config}: training.accumulate{times} must divide the batch's rows "
            f"({training['batch_size']}), got {training['accumulate']}"
        )


def _follow(source: str, config: Config, out: Path) -> None:
    """Trains with the first process, which writes the files of the run as long as it lives."""
    texts = _train_data.open_texts(source, config, lambda line: None)
    model = _model(source, config, texts)
    _train_files.set_tokenizer(model, config, out, texts)
    train.fit(model, texts.sampler, **_arguments_of_fit(config), out=out)


def _arguments_of_fit(config: Config) -> Config:
    return {key: value for key, value in config["training"].items() if key != "batch_size"}


def _read(path: Path, *objects: str) -> Config | None:
    """What the file holds, with objects of these names; None if there is none."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        raise ValueError(f"'{path}': malformed; --resume never begins anew") from None
    if not isinstance(value, dict) or not isinstance(value.get("schema"), int):
        raise ValueError(f"'{path}': malformed; --resume never begins anew")
    if value["schema"] > _SCHEMA:
        raise UsageError(f"'{path}' is of a newer version of paperlab")
    for name in objects:
        if not isinstance(value.get(name), dict):
            raise ValueError(f"'{path}': has no object {name}; --resume never begins anew")
    return value


def _has_step(out: Path, config: Config) -> bool:
    """Whether there is a step that a run has done, unless it has none to do."""
    try:
        return not config["training"]["steps"] or (out / "metrics.jsonl").stat().st_size > 0
    except OSError:
        return False


@contextlib.contextmanager
def _taken(out: Path) -> Iterator[None]:
    """One command at a time has the directory; a new one in which nothing began goes again.

    The lock is another than that of `train.fit`, which is free before and after the steps.
    """
    made = [folder for folder in [out, *out.parents] if not folder.exists()]
    out.mkdir(parents=True, exist_ok=True)
    path = out / "command.lock"
    with path.open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(f"{out}: another run is writing there") from None
        if os.fstat(lock.fileno()).st_nlink == 0:  # whose owner has just removed it
            raise OSError(f"{out}: another run is writing there")
        try:
            yield
        finally:
            if made and set(os.listdir(out)) <= {path.name, _train_files.TOKENIZER}:
                path.unlink()
                shutil.rmtree(out / _train_files.TOKENIZER, ignore_errors=True)
                for folder in made:
                    with contextlib.suppress(OSError):
                        folder.rmdir()


def _earlier(out: Path, run: Config, resume: str) -> bool:
    """Whether there is a run to go on with; one with other values or data is refused."""
    before = _read(out / "run.json", "config", "data") if resume == "auto" else None
    if before is None or not _has_step(out, run["config"]):
        return False
    _train_config.check_unchanged(f"'{out}'", before["config"], run["config"])
    for key in ("manifest_sha256", "tokens_sha256"):
        if before["data"].get(key) != run["data"][key]:
            raise ValueError(f"'{out}' holds a run on other data; --resume never begins anew")
    return True


def _model(source: str, config: Config, texts: _train_data.Texts) -> nn.Decoder:
    """The model to begin with, which can read the data."""
    options, tokens = config["model"], texts.tokens
    if options["from"] is not None:
        directory = _line.model_directory(options["from"])
        model = nn.as_decoder(nn.load(directory, dtype=options["dtype"]))
    else:
        mark = tokens.separator
        defaults = {"vocab_size": tokens.vocab_size, "bos_token_id": None, "eos_token_id": mark}
        settings = defaults | options["config"]
        try:
            made = nn.from_config(
                settings, init=options["init"], seed=options["seed"], dtype=options["dtype"]
            )
            model = nn.as_decoder(made)
        except ValueError as error:
            text = str(error).removeprefix("config: ")
            raise UsageError(f"{source}: model.config: {text}") from None
    if tokens.vocab_size > model.vocab_size:
        key = "model.from" if options["from"] is not None else "model.config.vocab_size"
        raise UsageError(
            f"{source}: {key}: vocabulary mismatch: the data have {tokens.vocab_size} tokens, the "
            f"model {model.vocab_size}"
        )
    if config["data"]["length"] > model.max_positions:
        raise UsageError(
            f"{source}: data.length {config['data']['length']} is more than the model's "
            f"{model.max_positions} positions"
        )
    return model


class _Batches:
    """The sampler's batches and state; what a resumed run lacks is done before its first batch."""

    def __init__(self, sampler: data.Sampler, before: Callable[[int], None]) -> None:
        self._sampler, self._before = sampler, before
        self.state, self.load_state = sampler.state, sampler.load_state

    def __call__(self, step: int) -> torch.Tensor:
        self._before(step)
        return self._sampler(step)


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
        self._out, self._run, self._config = out, run, run["config"]
        self._texts, self._model = texts, model
        self._source, self._resume = options.config, options.resume
        self._processes = options.processes
        self._options: Config | None = self._config["eval"]
        self._held_out = texts.held_out(self._source, self._options, print) if self._options else {}
        self._prompt = self._prompt_ids()
        goes_on = _earlier(out, run, options.resume)
        self._evaluations = _train_files.Evaluations(out / "evaluations.jsonl", goes_on)
        self._has_begun = False
        length = self._config["data"]["length"]
        tokens = self._config["training"]["batch_size"] * length
        precision = self._config["training"]["precision"]
        dtype = torch.bfloat16 if precision else next(model.parameters()).dtype
        self._progress = _train_progress.Progress(
            self._config["training"]["steps"],
            tokens,
            _train_progress.flops_per_token(model, length),
            _train_progress.product_rate(dtype) * _train_processes.size(1),
            str(dtype).removeprefix("torch."),
        )

    def execute(self) -> Config:
        """Trains to the end; the content of result.json."""
        try:
            task = {"source": self._source, "config": self._config, "out": str(self._out)}
            with _train_processes.followers(self._processes, task):
                history = train.fit(
                    self._model,
                    _Batches(self._texts.sampler, self._before),
                    **_arguments_of_fit(self._config),
                    out=self._out,
                    resume=self._resume,
                    on_step=self._on_step,
                )
        except ValueError as error:
            raise self._named(error) from None
        steps = len(history["loss"])
        self._begin(steps)
        if self._options and self._evaluations.after(steps) is None:
            self._measure(steps)
        return {
            "schema": _SCHEMA,
            "config": self._config,
            "steps": steps,
            "parameters": sum(value.numel() for value in self._model.parameters()),
            "loss": history["loss"][-1] if steps else None,
            "max_positions": self._model.max_positions,
            "data": self._run["data"],
            "evaluation": self._evaluations.after(steps),
        }

    def _named(self, error: ValueError) -> Exception:
        """An argument of fit is a key of the config."""
        name, _, rest = str(error).removeprefix("fit: ").partition(" ")
        if not self._has_begun and name in self._config["training"]:
            return UsageError(f"{self._source}: training.{name} {rest}")
        return error

    def _begin(self, steps: int) -> None:
        """Once nothing is refused any more: what this run is, and what an earlier one measured."""
        if not self._has_begun:
            self._has_begun = True
            (self._out / "result.json").unlink(missing_ok=True)
            text = json.dumps(self._run, indent=2, ensure_ascii=False)
            _train_files.write(self._out / "run.json", text + "\n")
            self._evaluations.keep(steps)

    def _before(self, step: int) -> None:
        """A resumed run measures what an interrupted one left out after that many steps."""
        if step and not self._has_begun:
            self._begin(step)
            if self._is_due(step) and self._evaluations.after(step) is None:
                self._measure(step)

    def _is_due(self, steps: int) -> bool:
        every = self._options["every"] if self._options else None
        return every is not None and steps % every == 0

    def _on_step(self, record: train.StepRecord) -> Mapping[str, float] | None:
        self._begin(record.step)
        self._progress.show(record)
        if not self._is_due(record.step + 1):
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
            parts = [self._score(document.tokens, length) for document in documents]
            num_bytes = sum(document.num_bytes for document in documents)
            summary = evaluation.Scores.joined(parts).summary(num_bytes=num_bytes)
            rows[name] = {"documents": len(documents), **summary}
        result: Config = {"steps": steps, "domains": rows}
        shown = ", ".join(f"{name} {row['bits_per_byte']:.4f}" for name, row in rows.items())
        print(f"step {steps:,}  held out, bits per byte: {shown}", flush=True)
        if self._prompt:
            result["sample"] = self._sample()
            print(f"step {steps:,}  sample: {json.dumps(result['sample'], ensure_ascii=False)}")
        self._evaluations.append(result)
        return result

    def _score(self, tokens: torch.Tensor, length: int) -> evaluation.Scores:
        """Between windows Python sees Ctrl-C."""
        return evaluation.score(self._model, tokens, context=length, on_window=lambda count: None)

    def _prompt_ids(self) -> list[int]:
        """The tokens of eval.prompt, which leaves room for others; empty if there is none."""
        prompt = self._options["prompt"] if self._options else None
        if prompt is None:
            return []
        ids, most = self._texts.ids(prompt), self._model.max_positions - 1
        if not 1 <= len(ids) <= most:
            raise UsageError(
                f"{self._source}: eval.prompt must have 1..{most} tokens, got {len(ids)}"
            )
        return ids

    def _sample(self) -> str:
        assert self._options is not None
        count = min(self._options["sample_tokens"], self._model.max_positions - len(self._prompt))
        tokens = self._model.generate(
            [self._prompt], count, pad_token_id=None, on_tokens=lambda step: None
        )
        return self._texts.text(tokens[0].tolist())


def _summary(result: Config) -> str:
    steps = result["steps"]
    text = f"{_line.counted(steps, 'step')}, loss {result['loss']:.4f}" if steps else "no step"
    rows: Mapping[str, Any] = (result["evaluation"] or {}).get("domains", {})
    if rows:
        bits = [row["bits_per_byte"] for row in rows.values()]
        text += f", {sum(bits) / len(bits):.4f} bits per byte over the domains"
    return text
