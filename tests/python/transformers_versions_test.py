"""paperlab.integrations.transformers with the oldest transformers that it supports."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

OLDEST = "4.57.1"
# Without dependencies, but for the two whose newest releases it refuses.
PACKAGES = [f"transformers=={OLDEST}", "huggingface-hub<1", "tokenizers<=0.23.0"]


@pytest.mark.slow
def test_the_tests_pass_with_the_oldest_version(package_path, tmp_path):
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--target", tmp_path, *PACKAGES], check=True)
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}:{package_path}"}
    version = [sys.executable, "-c", "import transformers; print(transformers.__version__)"]
    found = subprocess.run(version, env=env, check=True, capture_output=True, text=True)
    assert found.stdout == f"{OLDEST}\n"
    folder = Path(__file__).parent
    names = ("transformers", "transformers_mask", "cca_transformers")
    files = [folder / f"{name}_test.py" for name in names]
    subprocess.run([sys.executable, "-m", "pytest", "-q", "-rs", *files], env=env, check=True)
