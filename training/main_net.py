"""Stage 1: train the network without its post-filter, with noise or another surrogate for rounding."""

from submission.console import run
from training.loop.stage import main

if __name__ == "__main__":
    run(lambda: main("main", __doc__))
