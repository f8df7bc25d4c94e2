"""python -m paperlab doctor [--json]: shows the installation."""

import argparse
import json
import sys

from paperlab import _doctor


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m paperlab")
    commands = parser.add_subparsers(dest="command", required=True)
    doctor = commands.add_parser("doctor", help="show what is installed and in use")
    doctor.add_argument("--json", action="store_true", help="the same as one JSON object")
    as_json = parser.parse_args().json
    values = _doctor.report()
    if as_json:
        print(json.dumps(values, indent=2))
    else:
        print(_doctor.as_text(values))
    return 0


if __name__ == "__main__":
    sys.exit(main())
