"""The results of an evaluation: as JSON and as a table."""

import errno
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from paperlab._commands._texts import Domain
from paperlab.eval import Scores

Record = dict[str, Any]


def summaries(
    domains: Mapping[str, Domain], scores: Mapping[str, Scores], edges: Sequence[int]
) -> Record:
    """By domain, overall, and by position of all tokens. A number that does not exist is None."""
    everything = Scores.joined(list(scores.values()))
    counts = {name: _counts([domain]) for name, domain in domains.items()}
    return {
        "domains": {
            name: {"source": domain.source, **counts[name], **_summary(scores[name], counts[name])}
            for name, domain in domains.items()
        },
        "overall": (total := _counts(list(domains.values()))) | _summary(everything, total),
        "positions": [
            {key: _plain(value) for key, value in bucket.items()} | _mean(bucket)
            for bucket in everything.by_position(edges)
        ],
    }


def _counts(domains: Sequence[Domain]) -> dict[str, int]:
    texts = [text for domain in domains for text in domain.texts]
    return {"documents": len(texts), "bytes": sum(text.num_bytes for text in texts)}


def _summary(scores: Scores, counts: Mapping[str, int]) -> Record:
    values = scores.summary(num_bytes=counts["bytes"] or None)
    bits = {"bits_per_byte": values.get("bits_per_byte")}  # special tokens alone have no bytes
    return {key: _plain(value) for key, value in values.items()} | bits | _mean(values)


def _mean(values: Mapping[str, float]) -> Record:
    count = values["tokens"]
    return {"nats_per_token": values["nll"] / count if count else None}


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None


def as_table(result: Record) -> str:
    """Domains and overall; below, the buckets of positions that hold a token."""
    rows = [["domain", "documents", "tokens", "nats/token", "perplexity", "bits/byte"]]
    for name, row in [*result["domains"].items(), ("overall", result["overall"])]:
        numbers = [f"{row['documents']:,}", *_numbers(row), _number(row["bits_per_byte"], 4)]
        rows.append([_printable(name), *numbers])
    buckets = [["position", "", "tokens", "nats/token", "perplexity"]]
    for row in result["positions"]:
        if row["tokens"]:
            buckets.append([f"{row['begin']}-{row['end'] - 1}", "", *_numbers(row)])
    widths = [
        max(len(row[column]) for row in rows + buckets if column < len(row)) for column in range(6)
    ]
    return "\n".join(
        [*(_line(row, widths) for row in rows), "", *(_line(r, widths) for r in buckets)]
    )


def _printable(name: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in name)


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [row[0].ljust(widths[0])]
    cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=False)]
    return "  ".join(cells)


def _numbers(row: Record) -> list[str]:
    return [f"{row['tokens']:,}", _number(row["nats_per_token"], 4), _number(row["perplexity"], 3)]


def _number(value: float | None, digits: int) -> str:
    if value is None:
        return "-"
    return f"{value:.{digits}f}" if value < 1e6 else f"{value:.{digits}e}"


def check_target(path: Path) -> None:
    """Raises OSError before the work if the results could not be written afterwards."""
    if path.is_dir():
        raise IsADirectoryError(21, "Is a directory", str(path))
    path.parent.stat()
    if not path.parent.is_dir():
        raise NotADirectoryError(20, "Not a directory", str(path.parent))
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(13, "Permission denied", str(path.parent))


def write(path: Path, result: Record) -> None:
    """Writes the file as a whole, by rename; OSError if the path is a device or the like."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(result, file, indent=2, allow_nan=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
