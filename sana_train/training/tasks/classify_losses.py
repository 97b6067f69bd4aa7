"""What the reader is trained on: each cell, each attribute of the clip, and motion off the true masks.

Legend: B clips, F frames, S shapes, N cells of a frame, M = entries of a clip (cells or objects).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from sana_train.data.world.scene import SHAPES
from sana_train.evaluation.reader_net import ATTRIBUTES, NUM_FRAMES, ReaderNet
from sana_train.evaluation.reader_tracks import tracks

_FREE = len(SHAPES)  # label of a cell that shows no shape


def reading_losses(
    net: ReaderNet,
    frames: Tensor,
    of_clip: dict[str, Tensor],
    of_cells: dict[str, Tensor],
    is_noise: Tensor,
) -> dict[str, Tensor]:
    """``loss``, ``error_rate`` and ``cell_error_rate``, each (B,).

    ``of_clip`` and ``of_cells`` are labels, -1 = does not apply; (B,) ``is_noise`` tells clips that show
    nothing, whose labels are not looked at.
    """
    sight = net.look(frames)
    logits = net.answer(sight)
    with torch.autocast(frames.device.type, enabled=False):
        cells = _without(of_cells, is_noise) | {
            "shape": torch.where(is_noise[:, None], _FREE, of_cells["shape"])
        }
        clip = _without(of_clip, is_noise) | {"shape": of_clip["shape"] * ~is_noise[:, None]}
        log_p = {name: logits[name].float().log_softmax(dim=-1) for name in ATTRIBUTES}
        terms = [_cell_loss(sight.log_p, cells)]
        # `relation` follows from the masks; there is nothing in it to learn
        terms += [
            _mean(_picked(log_p[name], clip[name]), clip[name]) for name in ATTRIBUTES if name != "relation"
        ]
        motion = net.motion_head(tracks(_true_masks(of_cells["shape"]))).log_softmax(dim=-1)
        terms.append(_mean(_picked(motion, clip["motion"]), clip["motion"]))
        unsure = sight.log_p["background"].mean(dim=(1, 2)) + log_p["background"].mean(dim=1)
        terms.append(-unsure * is_noise)  # an even split
        wrong = [_wrong(log_p[name], of_clip[name]) for name in ATTRIBUTES]
        return {
            "loss": torch.stack(terms).sum(dim=0),
            "error_rate": torch.stack(wrong).mean(dim=0) * ~is_noise,
            "cell_error_rate": _wrong(sight.log_p["shape"], of_cells["shape"]) * ~is_noise,
        }


def _cell_loss(log_p: dict[str, Tensor], labels: dict[str, Tensor]) -> Tensor:
    """(B,); what shows a shape weighs as much as all that does not."""
    loss = sum(_mean(_picked(log_p[name], labels[name]), labels[name]) for name in log_p if name != "shape")
    shape = _picked(log_p["shape"], labels["shape"])
    is_free = labels["shape"] == _FREE
    on_shapes = _mean(shape, torch.where(is_free, -1, labels["shape"]))
    return loss + on_shapes + _mean(shape, torch.where(is_free, labels["shape"], -1))


def _true_masks(shape: Tensor) -> Tensor:
    """(B, F*N) labels -> (B, F, S, N)."""
    shown = F.one_hot(shape, len(SHAPES) + 1)[..., :-1].float()
    return rearrange(shown, "b (f n) s -> b f s n", f=NUM_FRAMES)


def _without(labels: dict[str, Tensor], is_noise: Tensor) -> dict[str, Tensor]:
    return {
        name: torch.where(is_noise.view(-1, *[1] * (label.ndim - 1)), -1, label)
        for name, label in labels.items()
    }


def _picked(log_p: Tensor, label: Tensor) -> Tensor:
    """Cross-entropy shaped like the labels, (B,) or (B, M)."""
    return -log_p.gather(-1, label.clamp_min(0)[..., None])[..., 0]


def _mean(value: Tensor, label: Tensor) -> Tensor:
    """(B,) mean of what applies, 0 if nothing does."""
    applies = (label >= 0).float()
    if value.ndim == 1:
        return value * applies
    return (value * applies).sum(dim=1) / applies.sum(dim=1).clamp_min(1.0)


def _wrong(log_p: Tensor, label: Tensor) -> Tensor:
    return _mean((log_p.argmax(dim=-1) != label).float(), label)
