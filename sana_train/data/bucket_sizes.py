"""Which picture sizes buckets have: SANA's published tables, or made for an autoencoder's stride."""

from __future__ import annotations

import re

from sana_train.types import LatentSpec, VideoShape

# Height x width in px by aspect ratio, as published with SANA-Video. The 480 table is in steps of 16 px, for
# autoencoders of 8 px a latent and patches of two; the other in steps of 32 px.
SANA_TABLES: dict[str, tuple[tuple[int, int], ...]] = {
    "sana_480": (
        (448, 896),
        (480, 832),
        (528, 768),
        (560, 720),
        (624, 624),
        (672, 592),
        (720, 560),
        (768, 528),
        (816, 496),
        (832, 480),
        (896, 448),
    ),
    "sana_720": (
        (672, 1344),
        (704, 1280),
        (800, 1152),
        (832, 1088),
        (960, 960),
        (1024, 896),
        (1088, 832),
        (1152, 800),
        (1248, 736),
        (1280, 704),
        (1344, 672),
    ),
}
_STRIDE_OF_480 = 8
# Height over width of both tables, to two digits.
ASPECTS = (0.5, 0.57, 0.68, 0.78, 1.0, 1.13, 1.29, 1.46, 1.67, 1.75, 2.0)


def size_tables(resolutions: list[str], spec: LatentSpec) -> list[list[tuple[int, int]]]:
    """The sizes (height_px, width_px) of each table asked for; single sizes together are one table.

    Args:
        resolutions: ``sana_480``, ``sana_720``, ``<side>px`` for sizes of the area of such a square in the
            aspects of SANA's tables, or single sizes as ``<height>x<width>``.
        spec: of the autoencoder, whose strides the sizes must divide into.

    Raises:
        ValueError: nothing of that name, or a size that does not fit, with the nearest that do.
    """
    if not resolutions:
        raise ValueError(f"no resolutions given; expected some of {_forms()}")
    tables, single = [], []
    for name in resolutions:
        if match := re.fullmatch(r"(\d+)x(\d+)", name):
            single.append((int(match[1]), int(match[2])))
        elif match := re.fullmatch(r"(\d+)px", name):
            tables.append(sizes_of_area(int(match[1]), spec))
        elif name in SANA_TABLES:
            tables.append(_published(name, spec))
        else:
            raise ValueError(f"there is no resolution {name!r}; expected {_forms()}")
    tables += [single] if single else []
    for height_px, width_px in (size for table in tables for size in table):
        require_divisible(height_px, width_px, spec)
    return tables


def _forms() -> str:
    return f"{', '.join(SANA_TABLES)}, <side>px such as 480px, or <height>x<width> such as 480x832"


def _published(name: str, spec: LatentSpec) -> list[tuple[int, int]]:
    table = SANA_TABLES[name]
    strides = (spec.stride_h, spec.stride_w)
    if name == "sana_480" and strides != (_STRIDE_OF_480, _STRIDE_OF_480):
        wrong = next(((h, w) for h, w in table if h % strides[0] or w % strides[1]), table[0])
        raise ValueError(
            f"sana_480 was published for autoencoders of {_STRIDE_OF_480} px a latent, this one has "
            f"{strides[0]}x{strides[1]}: the nearest valid sizes to its {_name(*wrong)} are "
            f"{nearest_sizes(*wrong, spec)}. Take 480px, whose sizes are made for this one, or sana_720"
        )
    return list(table)


def sizes_of_area(side_px: int, spec: LatentSpec) -> list[tuple[int, int]]:
    """Sizes in whole latents of about ``side_px`` ** 2 px, each once, in the aspects of SANA's tables."""
    sizes = []
    for aspect in ASPECTS:
        height_px = max(1, round(side_px * aspect**0.5 / spec.stride_h)) * spec.stride_h
        width_px = max(1, round(side_px * aspect**-0.5 / spec.stride_w)) * spec.stride_w
        sizes.append((height_px, width_px))
    return list(dict.fromkeys(sizes))


def require_divisible(height_px: int, width_px: int, spec: LatentSpec) -> None:
    """Raises ``ValueError`` naming the nearest sizes that divide into whole latents."""
    if height_px % spec.stride_h or width_px % spec.stride_w:
        raise ValueError(
            f"a bucket of {_name(height_px, width_px)} px does not divide into latents of "
            f"{spec.stride_h}x{spec.stride_w} px; the nearest valid sizes are "
            f"{nearest_sizes(height_px, width_px, spec)}"
        )


def nearest_sizes(height_px: int, width_px: int, spec: LatentSpec) -> str:
    """The whole multiples of the strides below and above, for messages."""
    lower, upper = (
        (max(1, height_px // spec.stride_h), max(1, width_px // spec.stride_w)),
        (-(-height_px // spec.stride_h), -(-width_px // spec.stride_w)),
    )
    sizes = dict.fromkeys(_name(h * spec.stride_h, w * spec.stride_w) for h, w in (lower, upper))
    return " and ".join(sizes)


def require_frames(frames: int, spec: LatentSpec) -> None:
    """Raises ``ValueError`` naming the nearest numbers of frames that make whole latents."""
    try:
        spec.latent_shape(VideoShape(frames, spec.stride_h, spec.stride_w))
    except ValueError as error:
        whole = max(0, frames - spec.skip_frames - 1) // spec.stride_t
        near = [spec.skip_frames + 1 + k * spec.stride_t for k in (whole, whole + 1)]
        raise ValueError(
            f"a bucket of {frames} frames does not fit the autoencoder ({error}); the nearest valid numbers "
            f"are {near[0]} and {near[1]}"
        ) from error


def _name(height_px: int, width_px: int) -> str:
    return f"{height_px}x{width_px}"
