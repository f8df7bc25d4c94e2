"""The command line of `./paperlab eval`."""

import argparse
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from paperlab import _tokenizer, nn
from paperlab import eval as evaluation
from paperlab._commands import _line, _result, _texts
from paperlab._commands._progress import Progress
from paperlab.data._recipes import SPLITS


@dataclass(frozen=True)
class _Measured:
    """What the model says, and how it was asked."""

    scores: dict[str, evaluation.Scores]  # by domain
    settings: _result.Record


def _parser() -> _line.Parser:
    parser = _line.Parser("eval", "How well a model predicts text, by domain and by position.")
    parser.add_argument("--model", metavar="DIR", help="a Hugging Face directory")
    parser.add_argument(
        "--text",
        metavar="[NAME=]FILE",
        action="append",
        default=[],
        help="a domain; may be repeated",
    )
    parser.add_argument("--data", metavar="RECIPE", help="the domains of a fetched recipe")
    parser.add_argument("--domains", metavar="A,B", help="some of the recipe's domains")
    parser.add_argument(
        "--split", type=_line.choice_of("split", SPLITS), help=f"{', '.join(SPLITS)} (test)"
    )
    parser.add_argument(
        "--documents", metavar="N", type=_line.whole(1), help="the first N of each domain"
    )
    parser.add_argument(
        "--context", metavar="N", type=_line.whole(1), help="tokens of a window (at most 1024)"
    )
    parser.add_argument(
        "--stride", metavar="N", type=_line.whole(1), help="between windows (the context)"
    )
    parser.add_argument("--buckets", metavar="A,B,...", type=_edges, help="edges of positions")
    parser.add_argument(
        "--dtype",
        type=_line.choice_of("dtype", _line.DTYPES),
        help=f"{', '.join(_line.DTYPES)}; default: the files' own",
    )
    parser.add_argument(
        "--stream", action="store_true", help="weights stay in the file until they are used"
    )
    parser.add_argument("--json", metavar="FILE", help="write the results there too")
    return parser


def _edges(word: str) -> list[int]:
    parts = word.split(",")
    if not all(part.isascii() and part.isdecimal() and len(part) < 12 for part in parts):
        raise argparse.ArgumentTypeError(f"must be whole numbers and commas, got {word!a:.60}")
    edges = [int(part) for part in parts]
    if len(edges) < 2 or any(a >= b for a, b in itertools.pairwise(edges)):
        raise argparse.ArgumentTypeError(f"must ascend and be at least two, got {word!a:.60}")
    return edges


def main(arguments: Sequence[str]) -> int:
    """Evaluates; returns the exit code."""
    options = _parser().parse(arguments, "model")
    return _line.run("eval", lambda: _evaluate(options))


def _evaluate(options: argparse.Namespace) -> None:
    _check_options(options)
    directory = _line.model_directory(options.model)
    if options.json is not None:
        _result.check_target(Path(options.json))
    tokenizer, tokenizer_hash = _tokenizer.load(directory)
    domains = _texts.from_files(options.text, tokenizer)
    if options.data is not None:
        domains |= _texts.from_recipe(options, tokenizer, taken=set(domains))
    progress = Progress(sum(len(d.tokens) - 1 for domain in domains.values() for d in domain.texts))

    def work() -> _Measured:
        model = _model(options, directory)
        for domain in domains.values():
            domain.check_vocabulary(tokenizer, model.vocab_size)
        settings = _settings(options, model)
        context, stride = settings["context"], settings["stride"]
        progress.start()
        scores = {
            name: _score(model, domain, context, stride, progress)
            for name, domain in domains.items()
        }
        return _Measured(scores, settings)

    try:
        measured = _line.interruptible(work, progress.end)
    finally:
        progress.end()
    result = {
        "schema": 1,
        "model": options.model,
        "tokenizer_sha256": tokenizer_hash,
        "settings": measured.settings,
        **_result.summaries(domains, measured.scores, measured.settings["buckets"]),
        "evaluation_s": round(progress.seconds, 3),
    }
    print(_result.as_table(result))
    if options.json is not None:
        _result.write(Path(options.json), result)


def _check_options(options: argparse.Namespace) -> None:
    if not options.text and options.data is None:
        raise _line.UsageError("needs --text FILE or --data RECIPE")
    for name in ("domains", "split", "documents"):
        if getattr(options, name) is not None and options.data is None:
            raise _line.UsageError(f"--{name} goes with --data RECIPE")
    if options.stride and options.context and options.stride > options.context:
        raise _line.UsageError(
            f"--stride {options.stride} is more than --context {options.context}"
        )


def _model(options: argparse.Namespace, directory: Path) -> nn.Decoder | evaluation.Streamed:
    if options.stream:
        return evaluation.streamed(directory, dtype=options.dtype)
    return nn.as_decoder(nn.load(directory, dtype=options.dtype))


def _settings(
    options: argparse.Namespace, model: nn.Decoder | evaluation.Streamed
) -> _result.Record:
    context = options.context or min(1024, model.max_positions)
    if context > model.max_positions:
        raise ValueError(
            f"--context {context} is more than the model's {model.max_positions} positions"
        )
    if options.stride and options.stride > context:
        raise ValueError(f"--stride {options.stride} is more than the context {context}")
    return {
        "context": context,
        "stride": options.stride or context,
        "buckets": options.buckets or default_edges(context),
        "dtype": str(_dtype(model)).removeprefix("torch."),
    }


def _dtype(model: nn.Decoder | evaluation.Streamed) -> torch.dtype:
    if isinstance(model, evaluation.Streamed):
        return model.dtype
    return next(model.parameters()).dtype


def default_edges(context: int) -> list[int]:
    """0, 128, 512, 1024, 2048 and so on, up to the first that is no less than the context."""
    edges, following = [0, 128], 512
    while edges[-1] < context:
        edges.append(following)
        following *= 2
    return edges


def _score(
    model: nn.Decoder | evaluation.Streamed,
    domain: _texts.Domain,
    context: int,
    stride: int,
    progress: Progress,
) -> evaluation.Scores:
    """Document by document: one that the model cannot score stops the work."""
    parts = []
    for name, text in zip(domain.names, domain.texts, strict=True):
        part = evaluation.score(
            model, text.tokens, context=context, stride=stride, on_window=progress.show
        )
        wrong = (~torch.isfinite(part.nll)).nonzero()
        if len(wrong):
            token = int(wrong[0]) + 1
            nats = float(part.nll[token - 1])
            raise ValueError(f"{name}: the model's score of token {token} is {nats} nats")
        progress.add(len(text.tokens) - 1)
        parts.append(part)
    return evaluation.Scores.joined(parts)
