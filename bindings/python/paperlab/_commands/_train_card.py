"""The model card of a training run."""

import json
import re
from pathlib import Path
from typing import Any

import paperlab
from paperlab._commands._train_config import Config

_NAMES = {"adamw": "AdamW", "sgd": "SGD", "adafactor": "Adafactor"}


_LICENCE = re.compile(r"\A---\n(?:.*\n)*?license: *(\"?)([^\"\n\[]+)\1\n(?:.*\n)*?---", re.ASCII)


def licence_of(config: Config) -> str:
    """As the config states it; else as the card of the model that it began with."""
    stated, parent = str(config["licence"]), config["model"]["from"]
    if stated != "unknown" or parent is None:
        return stated
    try:
        text = (Path(parent) / "README.md").read_text(encoding="utf-8")
    except (OSError, UnicodeError):
        return stated
    match = _LICENCE.match(text)
    return match[2].strip() if match else stated


def card(out: Path, run: Config, result: Config) -> str:
    """README.md of the directory: method, data, numbers, recipe, licence."""
    config, licence = run["config"], run["licence"]
    parent = config["model"]["from"]
    head = [f"license: {json.dumps(licence)}", "library_name: transformers"]
    head += ["tags:", "- paperlab"] + ([f"base_model: {json.dumps(parent)}"] if parent else [])
    sections = [
        "\n".join(["---", *head, "---"]),
        f"# {out.resolve().name}",
        f"## Method\n\n{_method(config, result)}",
        f"## Data\n\n{_data(run)}",
        f"## Held-out text\n\n{_numbers(config, result)}",
        f"## Limitations\n\n{_limitations(run, result)}",
        f"## Parents\n\n{f'`{parent}`' if parent else 'None: the initial values are random.'}",
        "## Recipe\n\n`./paperlab train --config FILE` with\n\n"
        f"```json\n{json.dumps(config, indent=2, ensure_ascii=False)}\n```",
        f"## Licence\n\n{licence}",
    ]
    return "\n\n".join(sections) + "\n"


def _method(config: Config, result: Config) -> str:
    training, length = config["training"], config["data"]["length"]
    tokens = training["batch_size"] * length
    return (
        f"A causal decoder of {result['parameters']:,} parameters, trained on the mean "
        f"cross-entropy of the next token for {result['steps']:,} steps of {tokens:,} tokens "
        f"({training['batch_size']} rows of {length}) with {_NAMES[training['optimizer']]}, "
        f"learning rate {training['learning_rate']}, schedule {training['schedule']}, "
        f"{_precision(config)}. Loss of the last step: {_plain(result['loss'])} nats. "
        f"Made with paperlab {paperlab.__version__}."
    )


def _precision(config: Config) -> str:
    dtype, precision = config["model"]["dtype"], config["training"]["precision"]
    return f"{dtype}, computed in {precision}" if precision else str(dtype)


def _data(run: Config) -> str:
    config, record = run["config"]["data"], run["data"]
    rows = "\n".join(
        f"| {name} | {weight:.4f} | {record['tokens'][name]:,} |"
        for name, weight in record["weights"].items()
    )
    missing = "".join(f"\nLeft out: {name}: {why}\n" for name, why in record["left_out"].items())
    return (
        f"Corpus `{record['corpus']}`, manifest SHA-256 `{record['manifest_sha256']}`; "
        f"tokenizer `{config['tokenizer']}`, tokens' manifest SHA-256 "
        f"`{record['tokens_sha256']}`.\n\n"
        f"| domain | share of rows | tokens |\n|---|---|---|\n{rows}\n{missing}"
    ).rstrip()


def _numbers(config: Config, result: Config) -> str:
    evaluation: Any = result["evaluation"]
    if evaluation is None:
        return "Not measured."
    rows = "\n".join(
        f"| {name} | {row['documents']:,} | {row['tokens']:,} | {_plain(row['perplexity'])} | "
        f"{_plain(row['bits_per_byte'])} |"
        for name, row in evaluation["domains"].items()
    )
    sample = evaluation.get("sample")
    shown = f"\n\nA sample: {json.dumps(sample, ensure_ascii=False)}" if sample else ""
    return (
        f"Split {config['eval']['split']}, windows of {config['data']['length']} tokens, each "
        "document from its own beginning.\n\n"
        "| domain | documents | tokens | perplexity | bits per byte |\n|---|---|---|---|---|\n"
        f"{rows}{shown}"
    )


def _limitations(run: Config, result: Config) -> str:
    domains = ", ".join(run["data"]["weights"])
    begun = " after what its parent saw" if run["config"]["model"]["from"] else ""
    measured = "nothing" if result["evaluation"] is None else "the numbers above"
    return (
        f"It continues text like that of its domains ({domains}){begun}, and knows nothing of "
        "others. It was not trained to follow instructions or to be safe, and what it says need "
        f"not be true. Of its quality, {measured} was measured; held-out documents come from the "
        f"same sources. It reads at most {result['max_positions']:,} tokens and was trained on "
        f"rows of {run['config']['data']['length']:,}."
    )


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
