"""Stage 5: the entropy model alone. Files become smaller, decoded pictures stay as they are."""

from submission.console import run
from training.loop.stage import main

if __name__ == "__main__":
    run(lambda: main("entropy", __doc__ or ""))
