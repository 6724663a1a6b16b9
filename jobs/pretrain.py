"""A base model as a Ray job:

ray job submit --working-dir . -- python jobs/pretrain.py KIND RECIPE [key=value ...] --out DIR

KIND, RECIPE and DIR are as for `sentisynth pretrain`; DIR must be seen by every node.
"""

import sys

from sentisynth.cli import main

if __name__ == "__main__":
    sys.exit(main(["pretrain", *sys.argv[1:]]))
