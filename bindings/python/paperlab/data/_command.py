"""The command line of `./paperlab data`."""

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from paperlab._commands import _line
from paperlab.data import _store
from paperlab.data._corpus import load, load_images
from paperlab.data._fetch import fetch
from paperlab.data._recipes import (
    RECIPES,
    SPLITS,
    Recipe,
    UnknownNameError,
    is_bundled,
    recipe_named,
)
from paperlab.data._store import Record


class _Parser(argparse.ArgumentParser):
    """Errors are one line."""

    def error(self, message: str) -> NoReturn:
        line = " ".join(message.split())
        print(f"paperlab data: {line}", file=sys.stderr)
        sys.exit(2)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m paperlab data", description="Real text by domain.")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)
    commands.add_parser("list", help="recipes and their domains, and what is fetched")
    fetching = commands.add_parser("fetch", help="fetch what is not there yet")
    fetching.add_argument("name")
    fetching.add_argument("--domains", help="some domains, separated by commas")
    stats = commands.add_parser("stats", help="documents, bytes, packages and versions")
    stats.add_argument("name")
    stats.add_argument("--json", action="store_true", help="print the manifest")
    stats.add_argument("--verify", action="store_true", help="read all files, compare their hashes")
    tokens = commands.add_parser("tokens", help="the documents as tokens; documents, sizes")
    tokens.add_argument("name")
    tokens.add_argument("--domains", help="some domains, separated by commas")
    kind = tokens.add_mutually_exclusive_group()
    kind.add_argument("--tokenizer", default="bytes", help="bytes, or a tokenizer.json")
    kind.add_argument("--bpe", type=int, help="train a byte-level BPE of that many tokens")
    tokens.add_argument("--separator", help="id or text of a token after each document")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Runs a command; returns the exit code."""
    options = _parser().parse_args(arguments)
    command: Callable[[Any], None] = {
        "list": _list,
        "fetch": _fetch,
        "stats": _stats,
        "tokens": _tokens,
    }[options.command]

    def work() -> None:
        try:
            command(options)
        except UnknownNameError as error:  # "data.FUNCTION: ..."
            raise _line.UsageError(str(error).partition(": ")[2]) from None

    return _line.run(f"data {options.command}", work)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 100_000 else f"{size / 1e3:.1f} kB"


def _state(folder: Path, recipe: Recipe, domain: str, records: dict[str, Record]) -> str:
    record = records.get(domain, {})
    if "missing" in record:
        return f"missing: {record['missing']}"
    if is_bundled(recipe) and not record:
        return "comes with paperlab"
    if not _store.is_current(folder, recipe, domain, records):
        return "out of date" if record else "not fetched"
    documents, size = sum(record["documents"].values()), sum(record["bytes"].values())
    return f"fetched {documents:9,} documents {_megabytes(size):>10}"


def _list(_: argparse.Namespace) -> None:
    cache = _store.cache_folder()
    for recipe in RECIPES.values():
        folder = _store.recipe_folder(cache, recipe)
        records = _store.read_manifest(folder)
        print(f"{recipe.name}: {recipe.summary}")
        for domain in recipe.domains:
            print(f"  {domain:<8} {_state(folder, recipe, domain, records)}")


def _fetch(options: argparse.Namespace) -> None:
    domains = options.domains.split(",") if options.domains is not None else None
    missing = fetch(options.name, domains, notice=lambda line: print(f"data: {line}", flush=True))
    folder = _store.recipe_folder(_store.cache_folder(), RECIPES[options.name])
    if not missing:
        print(f"data: {options.name} is complete in {folder}")
        return
    reasons = "; ".join(f"{domain} ({' '.join(why.split())})" for domain, why in missing.items())
    word = "domain" if len(missing) == 1 else "domains"
    raise ValueError(f"{options.name}: missing {word} {reasons}")


def _stats(options: argparse.Namespace) -> None:
    recipe = recipe_named("data.stats", options.name)
    if is_bundled(recipe):
        fetch(recipe.name)
    folder = _store.recipe_folder(_store.cache_folder(), recipe)
    records = _store.read_manifest(folder)
    if not records:
        raise ValueError(f"{recipe.name} is not fetched: ./paperlab data fetch {recipe.name}")
    if options.verify:
        _verify(recipe, records)
    text = (folder / _store.MANIFEST).read_bytes()
    if options.json:
        print(json.dumps(json.loads(text), indent=2))
        return
    print(f"{recipe.name}: manifest {hashlib.sha256(text).hexdigest()}")
    print(f"{'domain':<8} {'split':<6} {'documents':>10} {'bytes':>12}")
    for domain in (name for name in recipe.domains if name in records):
        _print_domain(domain, records[domain])
    counts = [sum(record.get("documents", {}).values()) for record in records.values()]
    sizes = [sum(record.get("bytes", {}).values()) for record in records.values()]
    print(f"{'all':<15} {sum(counts):>10,} {sum(sizes):>12,}")


def _verify(recipe: Recipe, records: dict[str, Record]) -> None:
    """Raises ValueError naming the first file that is not what the manifest says."""
    if "images" in recipe.domains:
        load_images(recipe.name).verify()
    else:
        load(recipe.name, list(records)).verify()


def _print_domain(domain: str, record: Record) -> None:
    if "missing" in record:
        print(f"{domain:<8} missing: {record['missing']}")
        return
    for split in (split for split in SPLITS if split in record["documents"]):
        count = record["documents"][split]
        print(f"{domain:<8} {split:<6} {count:>10,} {record['bytes'][split]:>12,}")
    for package in record["packages"]:
        size = _megabytes(package["bytes"])
        print(f"{'':<8} {package['name']} {package['version']}, {size}, {package['sha256'][:12]}")
    dropped = ", ".join(f"{count} {why}" for why, count in record.get("dropped", {}).items())
    if dropped:
        print(f"{'':<8} dropped: {dropped}")


def _tokens(options: argparse.Namespace) -> None:
    recipe_named("data.tokens", options.name)
    from paperlab.data import _encoders, _tokens  # loads the compiled core

    domains = options.domains.split(",") if options.domains is not None else None
    tokenizer, separator = options.tokenizer, options.separator
    if options.bpe is not None:
        tokenizer = _tokens.train_bpe(options.name, options.bpe, domains=domains)
        separator = _encoders.END if separator is None else separator
    if separator is not None and separator.isdecimal():
        separator = int(separator)
    tokens = _tokens.tokenize(
        options.name,
        tokenizer,
        domains=domains,
        separator=None if separator == "none" else separator,
        notice=lambda line: print(f"data: {line}", flush=True),
    )
    print(f"{options.name}: {tokens.tokenizer}, {tokens.vocab_size:,} tokens, {tokens.folder}")
    print(f"{'domain':<8} {'split':<6} {'documents':>10} {'tokens':>12} {'bytes/token':>12}")
    for domain, splits in tokens.counts.items():
        for split, count in splits.items():
            share = f"{count.bytes / count.tokens:.3f}" if count.tokens else "-"
            print(f"{domain:<8} {split:<6} {count.documents:>10,} {count.tokens:>12,} {share:>12}")
    for domain, why in tokens.missing.items():
        print(f"{domain:<8} missing: {why}")
