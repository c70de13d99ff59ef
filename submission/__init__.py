"""The codec: everything that turns pictures into streams and back, and nothing else."""

import os
import signal
import sys
from pathlib import Path
from types import TracebackType

__version__ = "0.2.0"

# Threads that wait should sleep. By default they spin, and where another process wants the cores too, which is what a
# judge's machine may look like, decoding then takes many times longer. Read when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _interrupted(*_: object) -> None:
    print("error: interrupted", file=sys.stderr, flush=True)
    os._exit(130)


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    name = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if not name or (Path(__file__).parents[1] / name).exists():  # one of our own: a fault to be seen whole
        sys.__excepthook__(kind, error, trace)
        return
    print(f"error: {name} is not installed: pip install {'pillow' if name == 'PIL' else name}", file=sys.stderr)
    sys.stderr.flush()
    os._exit(2)


# `python -m` one of our commands, while its libraries are imported, a second or two before `console.run` minds things.
# A library that is missing gets its line. Ctrl-C as an exception would end as a traceback, or inside torch as an abort.
if sys.argv[:1] == ["-m"]:
    sys.excepthook = _uncaught
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupted)
