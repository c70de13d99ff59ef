"""Before stage 1, if one likes: one network for a whole range of lambda, from which the ladder's models start."""

from submission.console import run
from training.loop.stage import main

if __name__ == "__main__":
    run(lambda: main("trunk", __doc__ or ""))
