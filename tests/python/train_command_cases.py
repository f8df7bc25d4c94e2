"""A config of `train`, runs of it, and the files that a run leaves."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest
import training_cases as cases
from paperlab._commands import train

Capture = pytest.CaptureFixture[str]
Write = Callable[..., str]
RESULTS = ("result.json", "run.json", "evaluations.jsonl", "metrics.jsonl", "model/README.md")

MODEL: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}
CONFIG: dict[str, Any] = {
    "model": {"config": MODEL, "seed": 3},
    "data": {"recipe": "sample", "domains": ["en", "c"], "length": 24, "separator": 0},
    "training": {
        "steps": 6,
        "batch_size": 4,
        "learning_rate": 0.003,
        "schedule": "cosine",
        "warmup_steps": 2,
        "clip_norm": 1.0,
        "weight_decay": 0.1,
        "no_decay": ["*norm*"],
        "checkpoint_every": 2,
    },
    "eval": {"every": 3, "documents": 1, "prompt": "The", "sample_tokens": 5},
}


@pytest.fixture(scope="module")
def train_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PAPERLAB_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def train_thread() -> Iterator[None]:
    with cases.one_thread():
        yield


@pytest.fixture(name="write")
def write_config(tmp_path: Path) -> Write:
    """write(section={...}): a file with CONFIG's sections changed key by key; None removes one."""

    def write(**changes: dict[str, Any] | str | None) -> str:
        config = json.loads(json.dumps(CONFIG))
        for section, values in changes.items():
            if isinstance(values, dict):
                config[section] = config.get(section, {}) | values
                config[section] = {k: v for k, v in config[section].items() if v != "absent"}
            elif values is None:
                del config[section]
            else:
                config[section] = values
        path = tmp_path / "config.json"
        path.write_text(json.dumps(config))
        return str(path)

    return write


def run(*arguments: object) -> int:
    try:
        return train.main([str(argument) for argument in arguments])
    except SystemExit as leave:
        return int(str(leave.code))


def start(package: Path, *arguments: object, stdin: IO[str] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "paperlab", "train", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(package), "PAPERLAB_NUM_THREADS": "1"},
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def files_of(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def assert_same_results(one: Path, other: Path) -> None:
    for name in (*RESULTS, "model/model.safetensors", "model/tokenizer.json"):
        mine, theirs = (out / name for out in (one, other))
        assert mine.read_bytes() == theirs.read_bytes(), name
