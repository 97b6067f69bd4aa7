"""Where our arithmetic, NVlabs' and diffusers' differ although the weights are the same.

Reproduced are epsilons, timesteps and the rounding inside linear attention: below float32 and given the
same queries, keys and values, ``diffusers`` mixes values bit for bit as diffusers does (tests hold it
against the original on a CPU; NVlabs' is read off its code). The rest of a network rounds in our way in
every mode: modulation and residuals are fused, and an RMS norm multiplies by its weight before it
rounds, as NVlabs' does and diffusers' does not. So whole bfloat16 networks stay about 1 % apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

Compat = Literal["none", "nvlabs", "diffusers"]


@dataclass(frozen=True)
class Numerics:
    """Rounding and epsilons of one implementation.

    Attributes:
        attention_eps: added to the denominator of linear attention.
        qk_eps: of the RMS norm of self-attention's queries and keys.
        cross_qk_eps: of the RMS norm of cross-attention's queries and keys.
        use_integer_timesteps: 1000 t is cut to an integer.
        rope_dtype: of the rotation.
        use_ambient_rounding: rotated queries and keys are rounded to the dtype of the projections, and
            linear attention's denominator and its reciprocal are evaluated in it; otherwise all stay
            in float32.
    """

    attention_eps: float
    qk_eps: float
    cross_qk_eps: float
    use_integer_timesteps: bool
    rope_dtype: torch.dtype
    use_ambient_rounding: bool


NUMERICS: dict[Compat, Numerics] = {
    "none": Numerics(1e-8, 1e-5, 1e-6, False, torch.float32, False),
    "nvlabs": Numerics(1e-8, 1e-5, 1e-6, True, torch.float64, True),
    "diffusers": Numerics(1e-15, 1e-5, 1e-5, False, torch.float32, True),
}
