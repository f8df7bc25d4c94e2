"""cuda_warm.py [--only NAME,...]

Compiles what cuda_bench.py compares with by torch.compile, so that its cache on disk serves the
benchmarks: it needs a GPU and torch, not the library, and may run while that is built. What fails
here is told and left for the benchmark to say.
"""

import argparse
import sys
import time
from collections.abc import Sequence

import torch
from support.cuda_machine import give_python_headers
from support.cuda_row_cases import Cases


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--only", default="")
    options = parser.parse_args(words)
    if not torch.cuda.is_available():
        print("cuda_warm: needs an NVIDIA GPU, and this machine has none", file=sys.stderr)
        return 1
    give_python_headers()
    cases = Cases(torch.device("cuda"), quick=False)
    for name in [name for name in options.only.split(",") if name] or list(cases.names):
        for case in cases.names[name]():
            inputs = case.make(0) if case.compiled else ()
            for compiled in sorted(case.compiled):
                began = time.monotonic()
                try:
                    case.thunk(case.baselines[compiled], inputs)()
                    torch.cuda.synchronize()
                    text = f"{time.monotonic() - began:.1f} s"
                except Exception as error:  # the benchmark will say so in its row
                    text = str(error).strip().split("\n", 1)[0][:160] or type(error).__name__
                print(f"{name}: {case.name}: {compiled}: {text}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
