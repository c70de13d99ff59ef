"""Where bfloat16 stands in for float32: never where something must come out the same on every machine.

The layers of g_a multiply in it, since what they give is rounded and sent, and the post-filter works in it, since what
it gives is a correction of a few levels (`docs/exactness.md` has how far pictures move). g_s stays in float32.
"""

import torch
from torch import Tensor, nn


def fast_bfloat16() -> bool:
    """Whether this CPU multiplies matrices faster in bfloat16 than in float32.

    `ATEN_CPU_CAPABILITY=avx2` in the environment makes it no.
    """
    wide = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return bool(wide and torch.backends.mkldnn.enabled and torch.cpu._is_avx512_bf16_supported())


def multiply_in_bfloat16(layer: nn.Module) -> None:
    """Have the convolutions of `layer` work in bfloat16, on an input in float32.

    What is summed up over many layers stays in float32 and keeps its digits: what bfloat16 rounds corrects it a little.
    """
    for module in layer.modules():
        if isinstance(module, nn.Conv2d):
            module.to(torch.bfloat16)
            module.register_forward_pre_hook(_narrow)


def _narrow(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    return (inputs[0].bfloat16(),)
