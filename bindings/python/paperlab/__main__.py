"""python -m paperlab VERB ...: the command lines; --help lists them."""

import argparse
import importlib
import json
import signal
import sys

from paperlab import _doctor

# Verb -> the module that has its main(arguments), what it is for.
_VERBS = {
    "convert": ("convert._command", "a GGUF file, or another dtype, to a Hugging Face directory"),
    "data": ("data._command", "real text by domain: list, fetch, stats, tokens"),
    "eval": ("_commands.evaluate", "how well a model predicts text"),
    "fetch": ("models._command", "real models, fetched and converted once"),
    "train": ("_commands.train", "a decoder on real text or files"),
    "generate": ("_commands.generate", "a prompt's continuation by a model"),
}


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m paperlab")
    commands = parser.add_subparsers(dest="command", required=True)
    doctor = commands.add_parser("doctor", help="show what is installed and in use")
    doctor.add_argument("--json", action="store_true", help="the same as one JSON object")
    for verb, (_, purpose) in _VERBS.items():
        commands.add_parser(verb, help=purpose, add_help=False)
    if sys.argv[1:2] and sys.argv[1] in _VERBS:
        module = importlib.import_module(f"paperlab.{_VERBS[sys.argv[1]][0]}")
        if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
            # The launcher lets the system end a Python that is still starting.
            signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            return int(module.main(sys.argv[2:]))
        except KeyboardInterrupt:
            return 130
    as_json = parser.parse_args().json
    values = _doctor.report()
    if as_json:
        print(json.dumps(values, indent=2))
    else:
        print(_doctor.as_text(values))
    return 0


if __name__ == "__main__":
    sys.exit(main())
