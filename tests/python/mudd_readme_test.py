"""The examples of the paper's README run."""

import os
import re
import subprocess
import sys
from pathlib import Path

import paperlab

README = (Path(__file__).resolve().parents[2] / "experiments" / "mudd" / "README.md").read_text()

STARTS_AS_WHAT_IT_WAS = """
plain = states[0]
for block in blocks:
    plain = block(plain)
print("largest change at first:", (x - plain).abs().max().item())
"""


def test_the_examples_run(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    own, whole, measures, pictures = blocks
    assert len([line for line in own.splitlines() if line.strip() and line[0] != "#"]) <= 10
    example = tmp_path / "example.py"
    example.write_text(own + STARTS_AS_WHAT_IT_WAS + whole + measures + pictures)
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
    assert "largest change at first: 0.0" in done.stdout
    assert "streams of block 1: ['K', 'Q', 'R', 'V']" in done.stdout
    assert "sources of the last block: [0, 1, 2, 3, 4]" in done.stdout
    assert "logits of pictures: (5, 10)" in done.stdout
