"""A resident source on disk: one safetensors file that every process on a machine maps at start.

Latent shards suit millions of clips; a sweep of many short runs over one small set wants to begin
training seconds after it was started.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from sana_train.data.resident import RaggedText, ResidentClips, encode_resident
from sana_train.data.staging import FixedSource
from sana_train.protocols import Autoencoder, TextEncoder
from sana_train.types import LatentSpec
from sana_train.utils.files import one_at_a_time, publish_file

_ATTRIBUTE = "attribute."


def banked_clips(
    source: FixedSource,
    autoencoder: Autoencoder,
    text_encoder: TextEncoder,
    folder: Path,
    device: torch.device | str,
    batch_size: int,
) -> ResidentClips:
    """``encode_resident`` with its result kept in ``folder``, under a name made of all three fingerprints."""
    made_by = (source.fingerprint(), autoencoder.fingerprint(), text_encoder.fingerprint())
    name = hashlib.sha256("/".join(made_by).encode()).hexdigest()[:16]
    path = folder / f"{name}.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(folder / f".{name}.lock"):  # of several ranks one encodes, the others read
        if not path.is_file():
            clips = encode_resident(source, {"space": autoencoder}, text_encoder, device, batch_size)["space"]
            save_bank(clips, path)
            return clips
    return load_bank(path, device)


def save_bank(clips: ResidentClips, path: Path) -> None:
    """Write all of ``clips``, atomically."""
    tensors = {
        "latents": clips.latents,
        "weight": clips.weight,
        "text.tokens": clips.text.tokens[:-1],  # without the padding row, which reading appends
        "text.lengths": clips.text.lengths,
        **{_ATTRIBUTE + name: value for name, value in clips.attributes.items()},
    }
    notes = {
        "captions": json.dumps(clips.captions),
        "spec": json.dumps(clips.spec.to_dict()),
        "max_tokens": str(len(clips.text.positions)),
    }
    on_cpu = {name: value.cpu().contiguous() for name, value in tensors.items()}
    with publish_file(path) as scratch:
        save_file(on_cpu, scratch, metadata=notes)


def load_bank(path: Path, device: torch.device | str) -> ResidentClips:
    """What ``save_bank`` wrote, on ``device``."""
    with safe_open(path, framework="pt", device=str(device)) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        notes = file.metadata()
    text = RaggedText(tensors["text.tokens"], tensors["text.lengths"], int(notes["max_tokens"]))
    attributes = {
        name.removeprefix(_ATTRIBUTE): value for name, value in tensors.items() if name.startswith(_ATTRIBUTE)
    }
    captions, spec = json.loads(notes["captions"]), LatentSpec(**json.loads(notes["spec"]))
    return ResidentClips(tensors["latents"], text, captions, attributes, tensors["weight"], spec)
