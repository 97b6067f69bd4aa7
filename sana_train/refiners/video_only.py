"""An LTX-2.0 transformer without its audio branch: the video stream's layers alone, as weights and as work.

diffusers' class always has both streams. Without the layers of audio and of attention between the streams, a
video transformer is left, whose forward is here; with weights of both it equals diffusers' with
``isolate_modalities`` (``tests/refiners/test_video_only.py``). Legend: B clips, N video tokens, C channels,
S text tokens, D width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from sana_train.utils.torch_files import read_safetensors

FILE_NAME = "transformer/diffusion_pytorch_model.safetensors"
_BETWEEN = ("av_cross_attn", "cross_attn_rope")  # of attention between the streams


def is_of_audio(name: str) -> bool:
    """Whether a module or parameter is of the audio stream, or of attention between the streams."""
    parts = name.split(".")
    return any("audio" in part or "a2v" in part or part.startswith(_BETWEEN) for part in parts)


def remove_audio(transformer: Any) -> None:
    """Take all that is not of the video stream out of an ``LTX2VideoTransformer3DModel``, in place."""
    for module in (transformer, *transformer.transformer_blocks):
        for name in [name for name, _ in module.named_children() if is_of_audio(name)]:
            delattr(module, name)
        for name in [name for name, _ in module.named_parameters(recurse=False) if is_of_audio(name)]:
            delattr(module, name)


def load_video(transformer: Any, weights: str | Path) -> None:
    """Load a folder's weights into a transformer without audio; those of audio, if it has them, are left out.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: of another architecture.
    """
    file = Path(weights) / FILE_NAME
    if not file.is_file():
        raise FileNotFoundError(
            f"no weights at {file.absolute()}; refiner.audio=none reads a folder that was trained so"
        )
    state = {name: value for name, value in read_safetensors(file).items() if not is_of_audio(name)}
    try:
        transformer.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise ValueError(f"{file} does not fit the video stream that the config builds: {error}") from error


def video_velocity(
    transformer: Any,
    video: Tensor,
    timestep: Tensor,
    context: Tensor,
    mask: Tensor | None,
    grid: tuple[int, int, int],
    fps: float,
) -> Tensor:
    """Noisy tokens (B, N, C) at timesteps (B,) of 0..1000 -> velocity (B, N, C).

    Args:
        context: (B, S, caption channels).
        mask: (B, S) of it; None leaves nothing out.
    """
    num_clips = len(video)
    # As diffusers masks.
    bias = None if mask is None else ((1 - mask.to(video.dtype)) * -10000.0).unsqueeze(1)
    coords = transformer.rope.prepare_video_coords(num_clips, *grid, video.device, fps=fps)
    rotations = transformer.rope(coords, device=video.device)
    hidden = transformer.proj_in(video)
    modulation, embedded = transformer.time_embed(
        timestep.flatten(), batch_size=num_clips, hidden_dtype=hidden.dtype
    )
    modulation = modulation.view(num_clips, -1, modulation.shape[-1])
    embedded = embedded.view(num_clips, -1, embedded.shape[-1])
    context = transformer.caption_projection(context).view(num_clips, -1, hidden.shape[-1])
    for block in transformer.transformer_blocks:
        hidden = _block(block, hidden, context, modulation, rotations, bias)
    shift, scale = (transformer.scale_shift_table[None, None] + embedded[:, :, None]).unbind(2)
    return transformer.proj_out(transformer.norm_out(hidden) * (1 + scale) + shift)


def _block(
    block: Any,
    hidden: Tensor,
    context: Tensor,
    modulation: Tensor,
    rotations: tuple[Tensor, Tensor],
    bias: Tensor | None,
) -> Tensor:
    """(B, N, D) -> (B, N, D): attention, attention to the text, feed-forward."""
    parts = block.get_mod_params(block.scale_shift_table, modulation, len(hidden))
    shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = parts
    attended = block.attn1(
        hidden_states=block.norm1(hidden) * (1 + scale) + shift,
        encoder_hidden_states=None,
        query_rotary_emb=rotations,
        attention_mask=None,
    )
    hidden = hidden + attended * gate
    hidden = hidden + block.attn2(
        block.norm2(hidden), encoder_hidden_states=context, query_rotary_emb=None, attention_mask=bias
    )
    return hidden + block.ff(block.norm3(hidden) * (1 + mlp_scale) + mlp_shift) * mlp_gate
