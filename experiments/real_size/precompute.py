"""How much of the bare encoder's speed ``cli.precompute`` keeps, from decoded clips in host memory.

    python experiments/real_size/precompute.py OUT SCRATCH [--captions gemma2] [--clips N] [--size tiny]

What ``cli.precompute --measure N`` measures, without video files and a decoder: the clips are random uint8
and the LTX-2 VAE has random weights. Captions go through the hashed encoder, or through Gemma-2-2b of random
weights behind SANA's instruction, one token a word, from files of its format in SCRATCH (5.2 GB, removed).
Three turns; writes OUT/precompute.json or OUT/precompute_gemma2.json.
``--size tiny`` runs the same code in seconds, on a CPU too.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sana_train.cli.load import compose_config, load
from sana_train.cli.precompute_job import build, num_cores
from sana_train.cli.precompute_measure import bare_and_pipeline
from sana_train.cli.vae_choice import read_choices
from sana_train.data.encode_shards import LoadedClip
from sana_train.data.progress import ClipProgress
from sana_train.types import VideoShape
from sana_train.utils.environment import environment
from sana_train.utils.files import write_json

CLIPS = {"2b": VideoShape(81, 704, 1280), "tiny": VideoShape(9, 64, 64)}
KEPT_CLIPS, ROUNDS = 8, 3
PROMPTS = Path(__file__).parents[2] / "data" / "prompts"
CAPTION = "a red square moves left"
NARROW_GEMMA = {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 256, "vocab_size": 512,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}  # fmt: skip


def random_clips(shape: VideoShape, num_clips: int) -> list[LoadedClip]:
    generator = torch.Generator().manual_seed(0)
    size = (3, shape.frames, shape.height_px, shape.width_px)
    info = {"caption": CAPTION, "attributes": {}, "problem": None}
    videos = (torch.randint(0, 256, size, dtype=torch.uint8, generator=generator) for _ in range(num_clips))
    return [LoadedClip(f"clip-{index}", video, info) for index, video in enumerate(videos)]


def write_gemma2(folder: Path, size: str, device: torch.device) -> None:
    """Gemma-2 of random bf16 weights as on the hub, and a tokenizer that knows the instruction's words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import Gemma2Config, Gemma2Model, PreTrainedTokenizerFast

    torch.manual_seed(0)
    narrow: Any = {} if size == "2b" else NARROW_GEMMA
    with torch.device(device):
        Gemma2Model._from_config(Gemma2Config(**narrow), dtype=torch.bfloat16).save_pretrained(folder)
    known = ["<pad>", "<eos>", "<bos>", "<unk>"]
    split = pre_tokenizers.Whitespace()
    text = (PROMPTS / "sana_instruction.txt").read_text() + CAPTION
    words = dict.fromkeys([*known, *(word for word, _ in split.pre_tokenize_str(text))])
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = split
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    names = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("scratch", type=Path, help="for shards, which are removed")
    parser.add_argument("--captions", choices=("hashed", "gemma2"), default="hashed")
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--size", choices=tuple(CLIPS), default="2b")
    given = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    given.scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=given.scratch) as weights:
        if given.captions == "gemma2":
            write_gemma2(Path(weights), given.size, device)
            text = ["text=gemma2", f"text.weights={weights}"]
        else:
            text = ["text=hashed", "text.dim=256", "text.max_tokens=32"]
        config = load(compose_config([f"scale={given.size}", *text]))
        assert config.latents is not None and config.text is not None
        encoders = build(read_choices([[f"ltx2_{given.size}", "weights=null"]]), config.text, device)
    shape = CLIPS[given.size]
    encoder = encoders.encoder(device, shape, config.latents)
    clips, turns = random_clips(shape, KEPT_CLIPS), []
    with ClipProgress("measuring", 2 * ROUNDS * given.clips) as progress:
        for _ in range(ROUNDS):
            bare_s, pipeline_s = bare_and_pipeline(encoder, clips, given.clips, given.scratch, progress)
            turns.append({"bare_s": bare_s, "pipeline_s": pipeline_s, "ratio": bare_s / pipeline_s})
    record = {
        "size": given.size,
        "clip": f"{shape.height_px}x{shape.width_px}x{shape.frames}",
        "clips": given.clips,
        "dtype": config.latents.dtype,
        "batch_size": config.latents.batch_size,
        "captions": given.captions,
        "cores": num_cores(),
        "turns": turns,
        "ratio": statistics.median(turn["ratio"] for turn in turns),
    }
    given.out.mkdir(parents=True, exist_ok=True)
    name = "precompute" if given.captions == "hashed" else f"precompute_{given.captions}"
    write_json(given.out / f"{name}.json", {**record, "environment": environment(device)})


if __name__ == "__main__":
    main()
