"""What the stream itself costs.

python benchmarks/stream.py overhead [--candidates N] [--unit-size N] [--json FILE]
python benchmarks/stream.py efficiency --run DIR [--units N] [--apart] [--json FILE]

See the two modules of these names.
"""

import argparse
import json
from pathlib import Path

from environment import environment, let_workers_import
from stream_efficiency import efficiency
from stream_overhead import overhead


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("overhead")
    one.add_argument("--candidates", type=int, default=500_000)
    one.add_argument("--unit-size", type=int, default=2048)
    one.set_defaults(measure=overhead)
    two = commands.add_parser("efficiency")
    two.add_argument("--run", type=Path, required=True)
    two.add_argument("--units", type=int, default=48)
    two.add_argument("--repeats", type=int, default=3)
    two.add_argument("--apart", action="store_true", help="on CPUs, pools for each stage, too")
    two.set_defaults(measure=efficiency)
    for command in (one, two):
        command.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    let_workers_import()
    figures = arguments.measure(arguments)
    for name, value in figures.items():
        if name != "marks":
            print(f"{name:72} {value}")
    if arguments.json:
        arguments.json.write_text(json.dumps({**environment(), **figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
