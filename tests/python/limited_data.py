"""Run as a program: a model's life in a process that may have little memory of its own.

    limited_data.py MODEL_DIR OUT_DIR LIMIT_BYTES

Prints one JSON object: scores and peaks. LIMIT_BYTES is what the process may allocate above what it
had before the model (RLIMIT_DATA: heap and private writable mappings), and above the mapped file
where that is writable.
"""

import json
import resource
import sys
from pathlib import Path

import torch
from paperlab import convert, nn
from paperlab import eval as evaluation

TOKENS = torch.arange(17) * 5 % 64


def status(key: str) -> int:
    """A size of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def limit(num_bytes: int) -> None:
    """Lets the process allocate so many bytes more."""
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (status("VmData") + num_bytes, hard))


class Peak:
    """`peak.bytes` after the block: by how much the resident memory grew in it at most."""

    def __enter__(self) -> "Peak":
        Path("/proc/self/clear_refs").write_text("5")  # the peak is what is resident now
        self._before = status("VmHWM")
        return self

    def __exit__(self, *_: object) -> None:
        self.bytes = status("VmHWM") - self._before


def nll(model: object) -> float:
    """Of a few tokens, in one window."""
    return evaluation.perplexity(model, TOKENS, context=16)["nll"]  # type: ignore[arg-type]


def warm_up(folder: Path) -> None:
    """Threads, kernels and files of code are there before anything is measured."""
    config = json.loads((folder / "config.json").read_text())
    small = nn.from_config(config | {"num_hidden_layers": 1, "hidden_size": 64, "head_dim": 8})
    small.save_pretrained(folder / "small")
    nll(evaluation.streamed(folder / "small"))
    nll(evaluation.streamed(folder / "small", dtype="bfloat16"))
    convert.checkpoint(folder / "small", folder / "small-half", dtype="bfloat16")
    nll(nn.load(folder / "small-half"))


def main() -> None:
    """Measures all, and prints it."""
    folder, out, num_bytes = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(2)
    warm_up(folder)
    scores, peaks = {}, {}
    limit(num_bytes)
    with Peak() as peak:
        scores["streamed"] = nll(evaluation.streamed(folder))
    peaks["streamed"] = peak.bytes
    with Peak() as peak:
        scores["streamed bfloat16"] = nll(evaluation.streamed(folder, dtype="bfloat16"))
    peaks["streamed bfloat16"] = peak.bytes
    with Peak() as peak:
        convert.checkpoint(folder, out / "half", dtype="bfloat16")
    peaks["convert"] = peak.bytes
    limit(num_bytes + (folder / "model.safetensors").stat().st_size)
    with Peak() as peak:
        model = nn.load(folder)
    peaks["load"] = peak.bytes
    limit(num_bytes)
    own = status("RssAnon")
    model.save_pretrained(out / "saved", max_shard_size="1GB")  # the file's pages are not its own
    peaks["saved, own"] = status("RssAnon") - own
    scores["loaded"] = nll(model)
    peaks["scored, own"] = status("RssAnon") - own
    del model
    limit(num_bytes + (folder / "model.safetensors").stat().st_size)
    scores["loaded bfloat16"] = nll(nn.load(out / "half"))
    scores["saved"] = nll(evaluation.streamed(out / "saved"))
    print(json.dumps({"scores": scores, "peaks": peaks}))


if __name__ == "__main__":
    main()
