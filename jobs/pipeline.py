"""The whole pipeline as a Ray job:

ray job submit --working-dir . -- python jobs/pipeline.py RECIPE [key=value ...] --out DIR

RECIPE and DIR are as for `sentisynth run`; DIR must be seen by every node.
"""

import sys

from sentisynth.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]]))
