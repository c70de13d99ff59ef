"""Stage 3: train everything together, with the padding strategy (Algorithm 1)."""

from submission.console import run
from training.loop.stage import main

if __name__ == "__main__":
    run(lambda: main("joint", __doc__))
