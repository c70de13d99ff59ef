"""Where training computes: the device, its precision, and the processes of a `torchrun`."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, distributed, nn

from submission.errors import UserError
from submission.network import Network
from training.network.conditional import Trunk

Precision = Literal["auto", "bf16", "fp32"]
Switch = Literal["auto", "on", "off"]


#: Graphs of one function, which here stands for all parts of a network.
RECOMPILATIONS = 64

#: Seconds of training that pay for the minute or so that `torch.compile` takes.
COMPILE_PAYS = 180.0


@dataclass(frozen=True)
class Device:
    """Where and how to compute: bf16 for convolutions where the device is fast at it, else fp32."""

    name: str
    bf16: bool
    compile: Switch = "off"

    @classmethod
    def choose(cls, precision: Precision = "auto", compile: Switch = "auto") -> "Device":
        """`auto` precision: bf16 where the device is fast at it. The GPU if there is one."""
        name = "cuda" if torch.cuda.is_available() else "cpu"
        fast = name == "cuda" or torch.cpu._is_avx512_bf16_supported()
        bf16 = fast if precision == "auto" else precision == "bf16"
        return cls(name, bf16, compile)

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.name, torch.bfloat16, enabled=self.bf16)

    def compiles(self, seconds: float | None) -> bool:
        """Whether to use `torch.compile` for training that may take `seconds` (None: long). `auto`: on a GPU, if it can
        pay; a CPU compiles for minutes and gains nothing (docs/training.md)."""
        worth = self.name == "cuda" and (seconds is None or seconds >= COMPILE_PAYS)
        return self.compile == "on" or (self.compile == "auto" and worth)

    def prepare(self, network: Network | Trunk, seconds: float | None) -> None:
        """Move `network` there, and compile its parts in place: names of parameters stay as they are. A trunk's
        weights are made anew in every step, which no compiled part would see."""
        network.to(self.name, memory_format=torch.channels_last)  # type: ignore[call-overload]
        torch.backends.cudnn.benchmark = True  # every crop has the same size
        if isinstance(network, Network) and self.compiles(seconds):
            torch.compiler.reset()  # another stage's code only counts towards the limit of recompilations
            for part in (network.g_a, network.h_a, network.entropy_model, network.g_s, network.post_filter):
                compile_whole(part)

    def generator(self, seed: int) -> torch.Generator:
        return torch.Generator(self.name).manual_seed(seed)

    def wait(self) -> None:
        """Until everything that was started has been computed."""
        if self.name == "cuda":
            torch.cuda.synchronize()


def compile_whole(module: nn.Module) -> None:
    """Compile `module` in place as one graph. `Module.compile` would take a Sequential apart, one graph a child."""
    forward = module.forward

    def whole(*inputs: Any) -> Any:
        return forward(*inputs)

    torch._dynamo.config.recompile_limit = RECOMPILATIONS
    module.forward = torch.compile(whole, dynamic=False)


@dataclass(frozen=True)
class World:
    """The processes that train one model together; process 0 alone writes."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, value: Any) -> Any:
        """What process 0 passes, on all of them."""
        if self.size == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box, src=0)
        return box[0]

    def total(self, value: Tensor) -> Tensor:
        """The sum of what all processes pass."""
        if self.size > 1:
            distributed.all_reduce(value)
        return value

    def align(self, parameters: list[nn.Parameter]) -> None:
        """Give all processes the first one's: on machines of different kinds they drift apart in the last bits."""
        if self.size > 1:
            for parameter in parameters:
                distributed.broadcast(parameter.data, src=0)

    def spread(self, parameters: list[nn.Parameter], source: int) -> None:
        """Give all processes those of process `source`, in one transfer."""
        if self.size == 1 or not parameters:
            return
        values = [parameter.data for parameter in parameters]
        flat = torch.cat([value.reshape(-1) for value in values])
        distributed.broadcast(flat, src=source)
        if self.rank != source:
            parts = flat.split([value.numel() for value in values])
            torch._foreach_copy_(values, [part.view(value.shape) for part, value in zip(parts, values, strict=True)])

    def collect(self, value: Any) -> list[Any]:
        """What all processes pass, in order; on the first one alone, the others get an empty list."""
        if self.size == 1:
            return [value]
        found = [None] * self.size if self.first else None
        distributed.gather_object(value, found, dst=0)
        return found or []

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            distributed.barrier()


ALONE = World()


@contextmanager
def join_world() -> Iterator[World]:
    """The processes that `torchrun` started (NCCL on GPUs, gloo on CPUs); this one alone without it."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    if torch.cuda.is_available():
        local = int(os.environ["LOCAL_RANK"])
        if local >= torch.cuda.device_count():
            raise UserError(f"--nproc-per-node {local + 1}: this machine has {torch.cuda.device_count()} GPUs")
        torch.cuda.set_device(local)
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield World(distributed.get_rank(), size)
    finally:
        distributed.destroy_process_group()
