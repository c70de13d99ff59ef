"""Where bfloat16 stands in for float32: never where something must come out the same on every machine.

It computes g_a at the sizes where the time goes, whose output is rounded and sent, and the post-filter, whose output is
a correction of a few levels: `docs/exactness.md` has how far pictures move. g_s stays in float32.
"""

import torch


def fast_bfloat16() -> bool:
    """Whether this CPU multiplies matrices faster in bfloat16 than in float32.

    `ATEN_CPU_CAPABILITY=avx2` in the environment makes it no.
    """
    wide = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return wide and torch.backends.mkldnn.enabled and bool(torch.cpu._is_avx512_bf16_supported())
