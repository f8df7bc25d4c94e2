"""The examples of the paper's README run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import paperlab

README = (Path(__file__).resolve().parents[2] / "experiments" / "cca" / "README.md").read_text()


def test_the_examples_run(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 2
    assert len([line for line in blocks[0].splitlines() if line.strip()]) <= 10
    example = tmp_path / "example.py"
    example.write_text("".join(blocks))
    environment = os.environ | {"PYTHONPATH": str(Path(paperlab.__file__).resolve().parents[1])}
    done = subprocess.run(
        [sys.executable, example],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert "changed rows: 121 torch.Size([1, 205])" in done.stdout
    assert "as before: True" in done.stdout
    assert "cache: 4.5 of 64 GiB" in done.stdout
    assert "attention: 12.95 times fewer FLOPs" in done.stdout
    assert "stored: 1280 of 4096" in done.stdout
