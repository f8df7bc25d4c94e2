"""The command line of `./paperlab generate`."""

import argparse
import importlib
import os
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from paperlab import _tokenizer, cca, nn
from paperlab._commands import _line

_NEW_TOKENS = 128  # unless told, or fewer where the model has fewer positions left
_ATTENTIONS = ("full", "cca")
_GROUP_SIZE, _WINDOW = 16, 1024  # of cca, unless told


def _parser() -> _line.Parser:
    parser = _line.Parser("generate", "Prints what a model makes of a prompt, as it is made.")
    parser.add_argument("--model", metavar="DIR", help="a Hugging Face directory")
    parser.add_argument("--prompt", metavar="TEXT", help="- reads standard input")
    parser.add_argument(
        "--max-new-tokens",
        metavar="N",
        type=_line.whole(1),
        help=f"at most so many ({_NEW_TOKENS})",
    )
    parser.add_argument(
        "--temperature",
        metavar="T",
        type=_line.number(">= 0", lambda t: 0.0 <= t < 1e30),
        default=0.0,
        help="0, the default: the most likely token",
    )
    parser.add_argument(
        "--top-p",
        metavar="P",
        type=_line.number("in (0, 1]", lambda p: 0.0 < p <= 1.0),
        default=1.0,
        help="samples among the likely tokens that first sum to P (1)",
    )
    parser.add_argument("--seed", metavar="N", type=_line.whole(0, 2**64 - 1), default=0)
    parser.add_argument(
        "--dtype",
        type=_line.choice_of("dtype", _line.DTYPES),
        help=f"{', '.join(_line.DTYPES)}; default: the files' own",
    )
    parser.add_argument("--chat", action="store_true", help="apply the model's chat template")
    parser.add_argument(
        "--attention",
        type=_line.choice_of("attention", _ATTENTIONS),
        default=_ATTENTIONS[0],
        help="full, the default, or cca: earlier tokens in groups, a small cache",
    )
    parser.add_argument(
        "--group-size",
        metavar="G",
        type=_line.whole(1, 2**31 - 1),
        help=f"of cca: one entry stands for so many tokens ({_GROUP_SIZE})",
    )
    parser.add_argument(
        "--window",
        metavar="S",
        type=_line.whole(0, 2**31 - 1),
        help=f"of cca: at least the last so many tokens stay as they are ({_WINDOW})",
    )
    return parser


def main(arguments: Sequence[str]) -> int:
    """Generates; returns the exit code."""
    parser = _parser()
    options = parser.parse(arguments, "model", "prompt")
    for name, value in (("--group-size", options.group_size), ("--window", options.window)):
        if value is not None and options.attention != "cca":
            parser.error(f"{name} needs --attention cca")
    return _line.run("generate", lambda: _generate(options))


def _generate(options: argparse.Namespace) -> None:
    directory = _line.model_directory(options.model)
    tokenizer, _ = _tokenizer.load(directory)
    prompt = _prompt(options.prompt)
    if options.chat:
        prompt = _chat(directory, prompt)
    ids = tokenizer.encode(prompt, add_special_tokens=not options.chat).ids
    if not ids:
        raise ValueError("the prompt has no tokens")

    def work() -> None:
        model = nn.as_decoder(nn.load(directory, dtype=options.dtype))
        _tokenizer.check_vocabulary(tokenizer, model.vocab_size, ids)
        if options.attention == "cca":
            group_size = _GROUP_SIZE if options.group_size is None else options.group_size
            cca.apply(model, group_size, _WINDOW if options.window is None else options.window)
        num_new = _num_new(len(ids), options.max_new_tokens, model.max_positions)
        _print_tokens(model, ids, num_new, _tokenizer.Stream(tokenizer, ids), options)

    _line.interruptible(work, lambda: _line.write_now(1, b"\n"))


def _prompt(argument: str) -> str:
    """The text as it is; a line break at the end of standard input belongs to it."""
    if argument == "-":
        return _line.decoded("standard input", sys.stdin.buffer.read())
    return _line.decoded("--prompt", os.fsencode(argument))


def _chat(directory: Path, prompt: str) -> str:
    """The prompt as a user's message in the directory's chat template."""
    try:
        transformers: Any = importlib.import_module("transformers")
    except ImportError:
        raise ImportError(
            "--chat needs the package transformers: pip install transformers"
        ) from None
    transformers.logging.set_verbosity_error()
    try:
        with warnings.catch_warnings(action="ignore"):
            tokenizer = transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True)
            if tokenizer.chat_template is None:
                raise ValueError("there is none in tokenizer_config.json")
            message = {"role": "user", "content": prompt}
            return str(
                tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
            )
    except Exception as error:  # a template is a program
        raise ValueError(f"'{directory}': chat template: {error}") from None


def _num_new(num_tokens: int, wanted: int | None, max_positions: int) -> int:
    """How many tokens may follow; ValueError if there is no room for them."""
    room = max_positions - num_tokens
    if wanted is None and room > 0:
        return min(_NEW_TOKENS, room)
    wanted = wanted or 1
    if wanted <= room:
        return wanted
    advice = f"; --max-new-tokens {room} fits" if room > 0 else ""
    raise ValueError(
        f"{_line.counted(num_tokens, 'token')} of the prompt and {wanted} more do not fit into the "
        f"model's {max_positions} positions{advice}"
    )


def _print_tokens(
    model: nn.Decoder,
    prompt: list[int],
    num_new: int,
    stream: _tokenizer.Stream,
    options: argparse.Namespace,
) -> None:
    ends = set(model.core.eos_token_ids)
    times: list[float] = []

    def show(step: torch.Tensor) -> None:
        token = int(step[0])
        times.append(time.perf_counter())
        piece = "" if token in ends else stream.add(token)
        if piece:
            sys.stdout.write(piece)
            sys.stdout.flush()

    start = time.perf_counter()
    model.generate(
        [prompt],
        num_new,
        temperature=options.temperature,
        top_p=options.top_p,
        seed=options.seed,
        pad_token_id=None,  # a prompt that names the padding means it
        on_tokens=show,
    )
    print(flush=True)
    if sys.stderr.isatty():
        print(_rates(len(prompt), start, times), file=sys.stderr)


def _rates(num_prompt: int, start: float, times: Sequence[float]) -> str:
    """The first token comes with the prompt; the rate is that of the others."""
    text = f"prompt: {_line.counted(num_prompt, 'token')} in {times[0] - start:.2f} s"
    if len(times) > 1:
        rate = (len(times) - 1) / (times[-1] - times[0])
        text += f"; {len(times)} new tokens, {rate:.1f} tokens/s"
    return text
