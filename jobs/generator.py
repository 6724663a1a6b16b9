"""Stage B as a Ray job:

ray job submit --working-dir . -- python jobs/generator.py RECIPE [key=value ...] --out DIR

RECIPE and DIR are as for `sentisynth generator`; DIR must be seen by every node.
"""

import sys

from sentisynth.cli import main

if __name__ == "__main__":
    sys.exit(main(["generator", *sys.argv[1:]]))
