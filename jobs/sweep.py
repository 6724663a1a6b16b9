"""A sweep as a Ray job:

ray job submit --working-dir . -- python jobs/sweep.py KIND RECIPE [key=value ...] --out DIR

KIND, RECIPE and DIR are as for `sentisynth sweep`; DIR must be seen by every node.
"""

import sys

from sentisynth.cli import main

if __name__ == "__main__":
    sys.exit(main(["sweep", *sys.argv[1:]]))
