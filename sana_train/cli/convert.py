"""``python -m sana_train.cli.convert``: a trained DiT in the formats of other programs.

--to diffusers   OUT becomes a folder for diffusers' SanaVideoTransformer3DModel.from_pretrained:
                 config.json, the weights, and null_context.safetensors, the caption of dropped captions,
                 for which diffusers has no place (give it as the negative prompt's embedding)
--to nvlabs      OUT.pth becomes {"state_dict": ...} under the names of NVlabs' training code

Weights keep the dtype they have. Before OUT appears it is loaded back, and one fp32 forward is compared
with the checkpoint's own: with diffusers' class, or with ours where NVlabs' cannot be had. A json goes
with it (sana_train.json in the folder, OUT.json beside the .pth): run, sizes, the autoencoder's
fingerprint, mean and std per latent channel, and the difference that was measured. A DiT's latents are
(raw - mean) / std.

example:
  python -m sana_train.cli.convert runs/mine/checkpoints/step_0000500 out/mine --to diffusers
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sana_train.cli.artifact import Artifact, read_artifact
from sana_train.cli.diffusers_dit import diffusers_velocity, write_config
from sana_train.cli.instantiate import instantiate
from sana_train.cli.process import readable_errors
from sana_train.models.checkpoint import Weights, load_dit, read_state, write_diffusers, write_nvlabs
from sana_train.models.sana_video import SanaVideoDiT
from sana_train.utils.files import publish_directory, publish_file, write_json

TOLERANCE = 1e-5  # max |a - b| / max |b| of one fp32 forward
RECORD_FILE = "sana_train.json"
_PROBE_TOKENS = (3, 4, 5)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m sana_train.cli.convert", description=__doc__)
    top.formatter_class = argparse.RawDescriptionHelpFormatter
    top.add_argument("checkpoint", type=Path, help="a checkpoint directory, or the export of a run")
    top.add_argument("out", type=Path, help="a folder (diffusers) or a .pth file (nvlabs) that is not there")
    top.add_argument("--to", choices=["diffusers", "nvlabs"], required=True)
    top.add_argument(
        "--weights",
        choices=["ema", "raw"],
        default="ema",
        help="of a checkpoint: averaged (default), or as trained; an export holds averaged ones",
    )
    top.add_argument(
        "--autoencoder",
        type=Path,
        metavar="FOLDER",
        help="the DiT's autoencoder, for checkpoints from before they kept its statistics",
    )
    return top


def main(arguments: Sequence[str] | None = None) -> None:
    given = parser().parse_args(arguments)
    with readable_errors():
        difference = convert(given.checkpoint, given.out, given.to, given.weights, given.autoencoder)
        sys.stdout.write(f"{given.out}: one forward differs by {difference:.1e} (allowed: {TOLERANCE:g})\n")


def convert(checkpoint: Path, out: Path, to: str, weights: Weights, autoencoder: Path | None) -> float:
    """Write and verify ``out``; returns the difference of one forward, relative to its largest value.

    Raises:
        ValueError: nothing to convert, ``out`` is there already, or what was written does not compute
            what the checkpoint does. Nothing is left behind.
    """
    record = out / RECORD_FILE if to == "diffusers" else out.with_suffix(".json")
    if to == "nvlabs" and out.suffix != ".pth":
        raise ValueError(f"{out} does not end in .pth, which NVlabs' format is; give such a file name")
    for path in (out, record):
        if path.exists():
            raise ValueError(f"{path} is there already; give another name or move it away")
    artifact = read_artifact(checkpoint, weights, autoencoder)
    write = _write_diffusers if to == "diffusers" else _write_nvlabs
    return write(artifact, out, record)["verified"]["difference"]


def _write_diffusers(artifact: Artifact, out: Path, record: Path) -> dict[str, Any]:
    with publish_directory(out) as scratch:
        write_diffusers(artifact.state, scratch)
        with torch.device("meta"):
            write_config(build_dit(artifact.model), scratch)
        velocity = diffusers_velocity(scratch, *probe(artifact.model, read_state(scratch)))
        facts = _verified(artifact, velocity, "diffusers", compat="diffusers")
        write_json(scratch / record.name, facts)
    return facts


def _write_nvlabs(artifact: Artifact, out: Path, record: Path) -> dict[str, Any]:
    out.parent.mkdir(parents=True, exist_ok=True)
    with publish_file(out) as scratch:
        write_nvlabs(artifact.state, scratch)
        facts = _verified(artifact, our_velocity(artifact.model, read_state(scratch)), "the file, read back")
        write_json(record, facts)
    return facts


def _verified(artifact: Artifact, theirs: Tensor, against: str, **settings: str) -> dict[str, Any]:
    """The json that goes with the files, if their velocity is the checkpoint's.

    ``difference`` compares the weights: with ``compat`` of diffusers for diffusers, whose epsilons are not
    those that a DiT is trained with by default. ``as_trained`` leaves ``compat`` as it was in training.
    """
    difference = relative_difference(theirs, our_velocity({**artifact.model, **settings}, artifact.state))
    if not difference <= TOLERANCE:  # also if it is not a number
        raise ValueError(
            f"what was written differs from the checkpoint by {difference:.1e} in one forward, {TOLERANCE:g} "
            f"is allowed (against {against}); nothing was published"
        )
    as_trained = (
        relative_difference(theirs, our_velocity(artifact.model, artifact.state)) if settings else difference
    )
    return {
        "made_by": artifact.made_by,
        "model": artifact.model,
        "latent_space": artifact.space,
        "verified": {
            "against": against,
            "difference": difference,
            "allowed": TOLERANCE,
            "as_trained": as_trained,
        },
    }


def relative_difference(left: Tensor, right: Tensor) -> float:
    """max |left - right| / max |right|."""
    return float((left - right).abs().max() / right.abs().max())


def probe(model: Mapping[str, Any], state: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two clips: latents (2, C, T, H, W), t (2,), context (2, S, D), mask (2, S).

    The first has a random caption of a few tokens, the second the null caption of ``state``.
    """
    generator = torch.Generator().manual_seed(0)
    sizes = [tokens * patch for tokens, patch in zip(_PROBE_TOKENS, model["patch_size"], strict=True)]
    latents = torch.randn(2, model["latent_channels"], *sizes, generator=generator)
    null = state["null_context"].float()
    context = torch.stack([torch.randn(null.shape, generator=generator), null])
    mask = torch.ones(context.shape[:2], dtype=torch.bool)
    mask[0, -(-len(null) // 2) :] = False
    return latents, torch.tensor([0.7, 0.3]), context, mask


@torch.no_grad()
def our_velocity(model: Mapping[str, Any], state: Mapping[str, Tensor]) -> Tensor:
    """Velocity of the probe by our network, in fp32 and plain PyTorch; it is gone from memory afterwards."""
    latents, t, context, mask = probe(model, state)
    plain = {**model, "kernels": "reference"} if "kernels" in model else model  # fused has no ``compat``
    network = load_dit(lambda: build_dit(plain), state, "cpu").eval()
    return network(latents, t, network.prepare(context, mask))


def build_dit(model: Mapping[str, Any]) -> SanaVideoDiT:
    network = instantiate(model)
    if not isinstance(network, SanaVideoDiT):
        raise ValueError(f"{type(network).__name__} given; only a SanaVideoDiT has these formats")
    return network


if __name__ == "__main__":
    main()
