"""Stage 4, soft-then-hard: fix both encoders and train the rest with real rounding."""

from submission.console import run
from training.loop.stage import main

if __name__ == "__main__":
    run(lambda: main("hard", __doc__))
