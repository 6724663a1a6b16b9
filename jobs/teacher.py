"""Stage A as a Ray job:

ray job submit --working-dir . -- python jobs/teacher.py RECIPE [key=value ...] --out DIR

RECIPE and DIR are as for `sentisynth teacher`; DIR must be seen by every node.
"""

import sys

from sentisynth.cli import main

if __name__ == "__main__":
    sys.exit(main(["teacher", *sys.argv[1:]]))
