"""Names and layouts of the SANA-Video weights: NVlabs `.pth` <-> ours <-> diffusers, as one table.

Every conversion is a renaming, a reshape or a split along rows, so each direction is exact. Only the
null caption has no place in diffusers; it comes back as a state of its own, for a side file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

State = dict[str, Tensor]
Format = Literal["ours", "nvlabs", "diffusers"]
Layout = Literal["same", "pointwise", "taps"]

NULL_CONTEXT = "null_context"
PATCH_EMBED = "patch_embed.weight"


@dataclass(frozen=True)
class Row:
    """One tensor of ours. ``{i}`` is the block; several diffusers names are row chunks, in order.

    ``layout`` says how the others store it: ``pointwise`` is a 1x1 convolution (O, I, 1, 1) of our
    (O, I); ``taps`` a (3, 1) convolution (O, I, 3, 1) of our (O, 3 I), tap-major.
    """

    ours: str
    nvlabs: str
    diffusers: tuple[str, ...]
    layout: Layout = "same"


def _layer(ours: str, nvlabs: str, *diffusers: str, bias: bool = True, layout: Layout = "same") -> list[Row]:
    """Rows of a layer's weight and, with ``bias``, of its bias."""
    rows = [Row(f"{ours}.weight", f"{nvlabs}.weight", tuple(f"{name}.weight" for name in diffusers), layout)]
    if bias:
        rows.append(Row(f"{ours}.bias", f"{nvlabs}.bias", tuple(f"{name}.bias" for name in diffusers)))
    return rows


_TIME = "time_embed.emb.timestep_embedder"
GLOBAL_ROWS: tuple[Row, ...] = (
    *_layer("patch_embed", "x_embedder.proj", "patch_embedding"),
    *_layer("time_embed.fc1", "t_embedder.mlp.0", f"{_TIME}.linear_1"),
    *_layer("time_embed.fc2", "t_embedder.mlp.2", f"{_TIME}.linear_2"),
    *_layer("time_modulation", "t_block.1", "time_embed.linear"),
    *_layer("caption_embed.fc1", "y_embedder.y_proj.fc1", "caption_projection.linear_1"),
    *_layer("caption_embed.fc2", "y_embedder.y_proj.fc2", "caption_projection.linear_2"),
    *_layer("caption_norm", "attention_y_norm", "caption_norm", bias=False),
    Row("final_layer.scale_shift_table", "final_layer.scale_shift_table", ("scale_shift_table",)),
    *_layer("final_layer.linear", "final_layer.linear", "proj_out"),
    Row(NULL_CONTEXT, "y_embedder.y_embedding", ()),
)

_B, _D = "blocks.{i}", "transformer_blocks.{i}"
BLOCK_ROWS: tuple[Row, ...] = (
    Row(f"{_B}.scale_shift_table", f"{_B}.scale_shift_table", (f"{_D}.scale_shift_table",)),
    *_layer(
        f"{_B}.self_attn.qkv",
        f"{_B}.attn.qkv",
        *(f"{_D}.attn1.to_{part}" for part in "qkv"),
        bias=False,
    ),
    *_layer(f"{_B}.self_attn.q_norm", f"{_B}.attn.q_norm", f"{_D}.attn1.norm_q", bias=False),
    *_layer(f"{_B}.self_attn.k_norm", f"{_B}.attn.k_norm", f"{_D}.attn1.norm_k", bias=False),
    *_layer(f"{_B}.self_attn.out", f"{_B}.attn.proj", f"{_D}.attn1.to_out.0"),
    *_layer(f"{_B}.cross_attn.q", f"{_B}.cross_attn.q_linear", f"{_D}.attn2.to_q"),
    *_layer(f"{_B}.cross_attn.kv", f"{_B}.cross_attn.kv_linear", f"{_D}.attn2.to_k", f"{_D}.attn2.to_v"),
    *_layer(f"{_B}.cross_attn.q_norm", f"{_B}.cross_attn.q_norm", f"{_D}.attn2.norm_q", bias=False),
    *_layer(f"{_B}.cross_attn.k_norm", f"{_B}.cross_attn.k_norm", f"{_D}.attn2.norm_k", bias=False),
    *_layer(f"{_B}.cross_attn.out", f"{_B}.cross_attn.proj", f"{_D}.attn2.to_out.0"),
    *_layer(f"{_B}.ffn.expand", f"{_B}.mlp.inverted_conv.conv", f"{_D}.ff.conv_inverted", layout="pointwise"),
    *_layer(f"{_B}.ffn.depthwise", f"{_B}.mlp.depth_conv.conv", f"{_D}.ff.conv_depth"),
    *_layer(
        f"{_B}.ffn.project",
        f"{_B}.mlp.point_conv.conv",
        f"{_D}.ff.conv_point",
        bias=False,
        layout="pointwise",
    ),
    *_layer(f"{_B}.ffn.temporal", f"{_B}.mlp.t_conv", f"{_D}.ff.conv_temp", bias=False, layout="taps"),
)

# Found in NVlabs files and used by nothing: unused sine tables and the variance head's logits.
NVLABS_IGNORED = frozenset(
    {"pos_embed", "base_model.pos_embed", "model.pos_embed", "logvar_linear.weight", "logvar_linear.bias"}
)


def _to_theirs(value: Tensor, layout: Layout) -> Tensor:
    if layout == "pointwise":
        return value[:, :, None, None]
    if layout == "taps":
        return value.unflatten(1, (3, -1)).transpose(1, 2).unsqueeze(-1)
    return value


def _to_ours(value: Tensor, layout: Layout) -> Tensor:
    if layout == "pointwise":
        return value.flatten(1)
    if layout == "taps":
        return value.squeeze(-1).transpose(1, 2).flatten(1)
    return value


def rows(depth: int) -> list[Row]:
    """The table written out for ``depth`` blocks."""

    def numbered(row: Row, i: int) -> Row:
        diffusers = tuple(name.replace("{i}", str(i)) for name in row.diffusers)
        ours, nvlabs = row.ours.replace("{i}", str(i)), row.nvlabs.replace("{i}", str(i))
        return Row(ours, nvlabs, diffusers, row.layout)

    return [*GLOBAL_ROWS, *(numbered(row, i) for i in range(depth) for row in BLOCK_ROWS)]


def depth_of(state: Mapping[str, Tensor]) -> int:
    """Number of blocks in a state of any format."""
    found = (re.match(r"(?:transformer_)?blocks\.(\d+)\.", key) for key in state)
    return 1 + max((int(match[1]) for match in found if match), default=-1)


def geometry(state: Mapping[str, Tensor]) -> dict[str, int | str]:
    """Sizes of the network that a state of ours belongs to; empty if it is not one."""
    marks = {
        "width": ("time_embed.fc2.weight", 0),
        "hidden width": ("blocks.0.ffn.project.weight", 1),
        "caption width": ("caption_embed.fc1.weight", 1),
    }
    if any(key not in state for key in (PATCH_EMBED, *(key for key, _ in marks.values()))):
        return {}
    _, channels, *patch = state[PATCH_EMBED].shape
    return {
        "depth": depth_of(state),
        **{name: state[key].shape[axis] for name, (key, axis) in marks.items()},
        "latent channels": channels,
        "patch": "x".join(map(str, patch)),
    }


def size_differences(
    theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor], *, with_latent_space: bool
) -> list[str]:
    """``name theirs against ours`` for each size of two networks that differs; states may be on meta."""
    sizes, wanted = geometry(theirs), geometry(ours)
    names = [name for name in wanted if with_latent_space or name not in ("latent channels", "patch")]
    if not sizes:
        return []
    return [f"{name} {sizes[name]} against {wanted[name]}" for name in names if sizes[name] != wanted[name]]


def detect_format(state: Mapping[str, Tensor]) -> Format:
    """Whose names a state has.

    Raises:
        ValueError: nobody's.
    """
    marks: dict[str, Format] = {
        PATCH_EMBED: "ours",
        "x_embedder.proj.weight": "nvlabs",
        "patch_embedding.weight": "diffusers",
    }
    for mark, name in marks.items():
        if mark in state:
            return name
    raise ValueError(
        f"not a SANA-Video state: none of {', '.join(marks)} among its {len(state)} keys "
        f"(first: {sorted(state)[:3]}); give the DiT's own weight file"
    )


class Converted(Mapping[str, Tensor]):
    """Another format's state under our names, in its dtype.

    A tensor is converted when it is asked for and kept by nobody, so that a file which lies mapped in
    memory is never copied as a whole.

    Args:
        theirs: the state.
        recipes: our key -> their names, whose rows follow each other, and their layout.
    """

    def __init__(
        self, theirs: Mapping[str, Tensor], recipes: Mapping[str, tuple[tuple[str, ...], Layout]]
    ) -> None:
        self._theirs, self._recipes = theirs, recipes

    def __getitem__(self, key: str) -> Tensor:
        names, layout = self._recipes[key]
        parts = [self._theirs[name] for name in names]
        return _to_ours(parts[0] if len(parts) == 1 else torch.cat(parts), layout)

    def __iter__(self) -> Iterator[str]:
        return iter(self._recipes)

    def __len__(self) -> int:
        return len(self._recipes)

    def on_meta(self) -> State:
        """Shapes and dtypes of everything, without reading a number."""
        theirs = {name: value.to("meta") for name, value in self._theirs.items()}
        return dict(Converted(theirs, self._recipes))


def on_meta(state: Mapping[str, Tensor]) -> State:
    """Shapes and dtypes of a state of ours, without reading a number."""
    if isinstance(state, Converted):
        return state.on_meta()
    return {name: value.to("meta") for name, value in state.items()}


def to_nvlabs(state: Mapping[str, Tensor]) -> State:
    """Ours -> NVlabs: 20 tensors a block + 17."""
    table = _complete(state, "ours", lambda row: (row.ours,))
    return {row.nvlabs: _to_theirs(state[row.ours], row.layout) for row in table}


def from_nvlabs(state: Mapping[str, Tensor]) -> Converted:
    """NVlabs -> ours; tables that nothing uses are left out."""
    used = {key: value for key, value in state.items() if key not in NVLABS_IGNORED}
    table = _complete(used, "nvlabs", lambda row: (row.nvlabs,))
    return Converted(used, {row.ours: ((row.nvlabs,), row.layout) for row in table})


def to_diffusers(state: Mapping[str, Tensor]) -> tuple[State, State]:
    """Ours -> (diffusers, side): 24 tensors a block + 16, and the null caption for a side file."""
    converted: State = {}
    for row in _complete(state, "ours", lambda row: (row.ours,)):
        if row.diffusers:
            chunks = _to_theirs(state[row.ours], row.layout).chunk(len(row.diffusers))
            converted.update(zip(row.diffusers, (chunk.contiguous() for chunk in chunks), strict=True))
    return converted, {NULL_CONTEXT: state[NULL_CONTEXT]}


def from_diffusers(state: Mapping[str, Tensor], side: Mapping[str, Tensor] | None = None) -> Converted:
    """Diffusers and the side file -> ours; without the side file the null caption is missing."""
    table = _complete(state, "diffusers", lambda row: row.diffusers)
    recipes: dict[str, tuple[tuple[str, ...], Layout]] = {
        row.ours: (row.diffusers, row.layout) for row in table if row.diffusers
    }
    if side:
        recipes |= {name: ((name,), "same") for name in side}
    return Converted({**state, **(side or {})}, recipes)


def _complete(
    state: Mapping[str, Tensor], source: Format, names: Callable[[Row], tuple[str, ...]]
) -> list[Row]:
    """The table for a whole state; a key too few or too many is an error."""
    table = rows(depth_of(state))
    known = {name for row in table for name in names(row)}
    missing, unknown = sorted(known - set(state)), sorted(set(state) - known)
    if missing or unknown:
        raise ValueError(
            f"not a complete SANA-Video state in {source} names: {len(missing)} missing {missing[:8]}, "
            f"{len(unknown)} unknown {unknown[:8]}; give the whole DiT and nothing else"
        )
    return table
