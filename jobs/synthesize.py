"""Stages C and D as a Ray job:

ray job submit --working-dir . -- python jobs/synthesize.py RECIPE [key=value ...] --out DIR

RECIPE and DIR are as for `sentisynth synthesize`; DIR must be seen by every node.
"""

import sys

from sentisynth.cli import main

if __name__ == "__main__":
    sys.exit(main(["synthesize", *sys.argv[1:]]))
