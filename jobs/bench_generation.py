"""Tokens a second of all GPUs of a cluster, as a Ray job:

ray job submit --working-dir . -- python jobs/bench_generation.py [--batch N] [--seconds S]
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

from cluster_generation import main  # type: ignore[import-not-found]

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
