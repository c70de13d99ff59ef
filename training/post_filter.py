"""Stage 2: train the GRDN post-filter behind the fixed main network."""

from submission.console import run
from training.loop.stage import main

if __name__ == "__main__":
    run(lambda: main("post_filter", __doc__))
