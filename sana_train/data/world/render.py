"""Scenes to pixels: batched, anti-aliased, on any device.

Every object is painted through a window that follows it, so the cost goes with the objects' area.
Legend: B scenes, O object slots, F frames, n objects of a group, w window side, H = W frame side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from sana_train.data.world.motion import positions, radii
from sana_train.data.world.scene import BACKDROP, BACKGROUNDS, NUM_SLOTS, SHAPES, TEXTURES, WORLD_PX, Scenes
from sana_train.data.world.shapes import DISTANCES
from sana_train.data.world.surfaces import COLOUR_RGB, PALETTE_RGB, backdrop_mix, textures

_WINDOW_PX = 64
_OUTLINE_PX = 1.5
_MIN_SIZE_PX = 64
# Clips painted at once at 128 px: memory of about 1 GiB; a GPU, which waits for launches, gets 3 GiB.
_CHUNK, _CHUNK_CUDA = 32, 96


def render(
    scenes: Scenes,
    frames: int = 17,
    size_px: int = 128,
    device: torch.device | str = "cpu",
    *,
    flatten_textures: bool = False,
) -> Tensor:
    """Clips (B, 3, F, H, W) float32 in [-1, 1].

    ``flatten_textures`` paints each texture as its mean colour. Raises ValueError for a ``size_px``
    that is no multiple of 32.
    """
    return _render(scenes, frames, size_px, device, 3, lambda painter: painter.paint(flatten_textures))


def textured_mask(
    scenes: Scenes, frames: int = 17, size_px: int = 128, device: torch.device | str = "cpu"
) -> Tensor:
    """(B, 1, F, H, W) in [0, 1]: how much of a pixel shows the inside of a textured object."""
    return _render(scenes, frames, size_px, device, 1, _Painter.mask)


def shape_cells(
    scenes: Scenes, frames: int = 17, grid: int = 32, device: torch.device | str = "cpu"
) -> Tensor:
    """(B, F, grid, grid) int64: the shape that covers most of a cell of the frame, -1 = the backdrop."""
    size_px = max(_MIN_SIZE_PX, 2 * grid)  # coverage is anti-aliased: two samples across a cell will do
    shares = _render(scenes, frames, size_px, device, NUM_SLOTS, _Painter.shares)
    shares = F.avg_pool2d(shares.flatten(1, 2), size_px // grid).unflatten(1, (NUM_SLOTS, frames))
    share, slot = shares.max(dim=1)  # (B, F, grid, grid)
    shape = scenes.shape.to(slot.device).gather(1, slot.flatten(1)).view_as(slot)
    return torch.where(share > 1 - shares.sum(dim=1), shape, -1)


def _render(
    scenes: Scenes,
    frames: int,
    size_px: int,
    device: torch.device | str,
    channels: int,
    paint: Callable[[_Painter], Tensor],
) -> Tensor:
    if size_px % 32 or size_px < _MIN_SIZE_PX:
        raise ValueError(f"size_px={size_px}: expected a multiple of 32, at least 64")
    num_at_once = _CHUNK_CUDA if torch.device(device).type == "cuda" else _CHUNK
    chunk = max(1, int(num_at_once * (128 / size_px) ** 2))
    out = torch.empty(len(scenes), channels, frames, size_px, size_px, device=device)
    for start in range(0, len(scenes), chunk):
        part = scenes[slice(start, start + chunk)]
        painted = paint(_Painter(part, frames, size_px, torch.device(device)))
        out[start : start + chunk] = rearrange(painted, "c b f h w -> b c f h w")
    return out


class _Painter:
    """One chunk of scenes: classes stay on the CPU (they steer), numbers go to the device."""

    def __init__(self, scenes: Scenes, frames: int, size_px: int, device: torch.device) -> None:
        self.scenes, self.frames, self.size_px, self.device = scenes, frames, size_px, device
        self.scale = size_px / WORLD_PX
        self.window = round(_WINDOW_PX * self.scale)
        times = torch.arange(frames, dtype=torch.float32)
        x, y = positions(scenes.path, times)
        self.x, self.y = x.to(device), y.to(device)  # (B, O, F)
        self.radius = radii(scenes.path, times).to(device)
        self.periods = torch.tensor([*scenes.spec.periods_px, 1.0], device=device)  # [-1]: no period

    def paint(self, flatten: bool) -> Tensor:
        """(3, B, F, H, W) in [-1, 1]."""
        canvas = self._backdrop()
        for rows, slots in self._layers():
            index, distance, dx, dy = self._window(rows, slots)
            light, dark = self._tones(rows, slots)
            value = 0.5 if flatten else self._texture(rows, slots, dx, dy)
            edge = 0.3 * self._base_colour(rows, slots)
            inside = self._coverage(distance + _OUTLINE_PX)
            colour = edge + inside * ((dark - edge) + value * (light - dark))
            self._blend(canvas, index, colour, self._coverage(distance))
        start, end = self._backdrop_column("light0"), self._backdrop_column("light1")
        time = torch.linspace(0, 1, self.frames, device=self.device).view(1, -1, 1, 1)
        return canvas.mul_(2 * (start + (end - start) * time)).sub_(1)

    def mask(self) -> Tensor:
        """(1, B, F, H, W) in [0, 1]."""
        shape = (1, len(self.scenes), self.frames, self.size_px, self.size_px)
        canvas = torch.zeros(shape, device=self.device)
        plain = TEXTURES.index("plain")
        for rows, slots in self._layers():
            index, distance, _, _ = self._window(rows, slots)
            textured = (self.scenes.texture[rows, slots] != plain).float().to(self.device)
            inside = self._coverage(distance + _OUTLINE_PX) * textured.view(-1, 1, 1, 1)
            self._blend(canvas, index, inside[None], self._coverage(distance))
        return canvas

    def shares(self) -> Tensor:
        """(O, B, F, H, W) in [0, 1]: how much of a pixel shows each object."""
        shape = (NUM_SLOTS, len(self.scenes), self.frames, self.size_px, self.size_px)
        canvas = torch.zeros(shape, device=self.device)
        for rows, slots in self._layers():
            index, distance, _, _ = self._window(rows, slots)
            itself = F.one_hot(slots, NUM_SLOTS).T.float().to(self.device)[..., None, None, None]
            self._blend(canvas, index, itself.expand(-1, *distance.shape), self._coverage(distance))
        return canvas

    def _layers(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(rows, slots) of the objects of each depth, back to front; one object per scene at most."""
        for depth in self.scenes.depth.unbind(1):
            rows = torch.arange(len(depth))
            exists = self.scenes.shape[rows, depth] >= 0
            if exists.any():
                yield rows[exists], depth[exists]

    def _window(self, rows: Tensor, slots: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Flat pixel index, signed distance and offsets from the centre, world px: (n, F, w, w) each."""
        x, y, radius = (self._take(value, rows, slots) for value in (self.x, self.y, self.radius))
        reach = torch.arange(self.window, device=self.device)
        limit = self.size_px - self.window
        left = (x * self.scale - self.window / 2).round().long().clamp(0, limit)
        top = (y * self.scale - self.window / 2).round().long().clamp(0, limit)
        column = left.unsqueeze(-1) + reach  # (n, F, w)
        row = top.unsqueeze(-1) + reach
        dx = ((column + 0.5) / self.scale - x.unsqueeze(-1)).unsqueeze(-2)  # (n, F, 1, w)
        dy = ((row + 0.5) / self.scale - y.unsqueeze(-1)).unsqueeze(-1)  # (n, F, w, 1)
        frame = rows.to(self.device)[:, None] * self.frames + torch.arange(self.frames, device=self.device)
        index = (frame[..., None, None] * self.size_px + row[..., None]) * self.size_px + column[..., None, :]
        dx, dy = torch.broadcast_tensors(dx, dy)
        radius = radius[..., None, None]
        distance = self._by_class(
            self.scenes.shape[rows, slots],
            len(SHAPES),
            lambda kind, which: DISTANCES[kind](dx[which] / radius[which], dy[which] / radius[which]),
            dx,
        )
        return index, distance * radius, dx, dy

    def _texture(self, rows: Tensor, slots: Tensor, dx: Tensor, dy: Tensor) -> Tensor:
        """(n, F, w, w) in [0, 1]: from a texture's dark to its light tone."""
        scenes = self.scenes
        period = self.periods[scenes.frequency[rows, slots].to(self.device)].view(-1, 1, 1, 1)
        variant = (scenes.variant[rows, slots] % scenes.spec.num_looks).to(self.device).view(-1, 1, 1, 1)
        radius = self._take(self.radius, rows, slots)[..., None, None]

        def field(kind: int, which: Tensor) -> Tensor:
            return textures(kind, dx[which], dy[which], radius[which], period[which], variant[which])

        return self._by_class(scenes.texture[rows, slots], len(TEXTURES), field, dx)

    def _tones(self, rows: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Light and dark tone (3, n, 1, 1, 1) around an object's colour; equal if it is plain."""
        base = self._base_colour(rows, slots)
        textured = (self.scenes.texture[rows, slots] != TEXTURES.index("plain")).float().to(self.device)
        contrast = 0.5 * self.scenes.spec.texture_contrast * textured.view(1, -1, 1, 1, 1)
        return base + (1 - base) * contrast, base * (1 - contrast)

    def _base_colour(self, rows: Tensor, slots: Tensor) -> Tensor:
        rgb = torch.tensor(COLOUR_RGB, dtype=torch.float32).T / 255
        return rgb[:, self.scenes.colour[rows, slots]].to(self.device)[..., None, None, None]

    def _backdrop(self) -> Tensor:
        """(3, B, F, H, W) in [0, 1]."""
        pixel = (torch.arange(self.size_px, device=self.device) + 0.5) / self.scale
        time = torch.arange(self.frames, device=self.device).view(1, -1, 1, 1)
        x = pixel.view(1, 1, 1, -1) + self._backdrop_column("pan") * time  # (B, F, 1, W)
        y = pixel.view(1, 1, -1, 1).expand(len(x), self.frames, -1, 1)
        numbers = [self._backdrop_column(name) for name in ("angle", "offset_x", "offset_y")]
        like = torch.empty(len(x), self.frames, self.size_px, self.size_px, device=self.device)
        mix = self._by_class(
            self.scenes.background,
            len(BACKGROUNDS),
            lambda kind, which: backdrop_mix(kind, x[which], y[which], *(value[which] for value in numbers)),
            like,
        )
        palette = torch.tensor(PALETTE_RGB, dtype=torch.float32) / 255  # (palettes, 2, 3)
        tones = palette[self.scenes.backdrop[:, BACKDROP.index("palette")].long()].to(self.device)
        first, second = rearrange(tones, "b two c -> two c b 1 1 1")
        canvas = torch.empty(3, *mix.shape, device=self.device)
        return torch.addcmul(first, mix[None], second - first, out=canvas)

    def _backdrop_column(self, name: str) -> Tensor:
        return self.scenes.backdrop[:, BACKDROP.index(name)].to(self.device).view(-1, 1, 1, 1)

    def _take(self, value: Tensor, rows: Tensor, slots: Tensor) -> Tensor:
        return value[rows.to(self.device), slots.to(self.device)]

    def _by_class(
        self, kinds: Tensor, num_kinds: int, function: Callable[[int, Tensor], Tensor], like: Tensor
    ) -> Tensor:
        """Fill a tensor shaped as ``like`` group by group, so each formula sees only its own rows."""
        out = torch.empty(like.shape, device=self.device)
        for kind in range(num_kinds):
            which = (kinds == kind).nonzero().flatten()
            if len(which):
                which = which.to(self.device)
                out[which] = function(kind, which)
        return out

    def _coverage(self, distance: Tensor) -> Tensor:
        """Share of a pixel inside a distance of 0 (box filter across the edge)."""
        return (0.5 - distance * self.scale).clamp(0.0, 1.0)

    @staticmethod
    def _blend(canvas: Tensor, index: Tensor, colour: Tensor, alpha: Tensor) -> None:
        flat = canvas.view(len(canvas), -1)
        index = index.flatten()
        under = flat[:, index]
        flat[:, index] = torch.lerp(under, colour.flatten(1), alpha.flatten())
