"""python -m paperlab doctor [--json] | data ...: shows the installation; real text."""

import argparse
import json
import sys

from paperlab import _doctor
from paperlab.data._command import main as data_main


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m paperlab")
    commands = parser.add_subparsers(dest="command", required=True)
    doctor = commands.add_parser("doctor", help="show what is installed and in use")
    doctor.add_argument("--json", action="store_true", help="the same as one JSON object")
    commands.add_parser("data", help="real text by domain: list, fetch, stats", add_help=False)
    if sys.argv[1:2] == ["data"]:
        return data_main(sys.argv[2:])
    as_json = parser.parse_args().json
    values = _doctor.report()
    if as_json:
        print(json.dumps(values, indent=2))
    else:
        print(_doctor.as_text(values))
    return 0


if __name__ == "__main__":
    sys.exit(main())
