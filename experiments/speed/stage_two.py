"""The stage-2 transformer at its true size, as diffusers runs it and as ``refiner.kernels=compiled`` does.

    python experiments/speed/stage_two.py OUT [--clip 1408x2560x81 ...] [--rounds 3] [--size tiny]

18.88B random weights in bfloat16 (38 GB), made on meta and filled on the device; all ways share them and take
turns. One evaluation with 1,024 text tokens:

stock           diffusers' forward as its pipeline calls it: rotations anew, a text mask of ones
stock_no_mask   the same without the mask
compiled        refiner.kernels=compiled

and the video's self-attention alone by each of PyTorch's backends, with the one that stock gets named.

OUT/results.json is written clip by clip, and the same call goes on; outputs are held against stock's. A
breakdown of kernels goes with stock and compiled. ``--size tiny`` runs the same code on a CPU in a minute.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sana_train.cli.arguments import positive, video_size
from sana_train.cli.instantiate import instantiate
from sana_train.cli.load import compose_config, resolve
from sana_train.evaluation.speed.breakdown import breakdown
from sana_train.evaluation.speed.turns import Contestant, ceilings, take_turns
from sana_train.refiners.ltx2 import LTX2Refiner
from sana_train.text.prompt_cache import PromptEmbeddings
from sana_train.training.callbacks.throughput import peak_flops
from sana_train.types import VideoShape
from sana_train.utils.environment import environment
from sana_train.utils.files import write_json

FPS, SIGMA = 16.0, 0.909375
CLIPS = {"2b": ["1408x2560x81", "704x1280x81"], "tiny": ["64x64x17"]}
NUM_TEXT = {"2b": 1024, "tiny": 16}
WANTED_MS = {"1408x2560x81": 3700.0}
BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
WAYS = ("stock", "stock_no_mask", "compiled")


def refiner_node(size: str) -> dict[str, Any]:
    return resolve(compose_config(["refiner.weights=null"], f"refiner/ltx2_{size}"))["refiner"]


def random_refiner(node: dict[str, Any], device: torch.device) -> LTX2Refiner:
    """Its weights are drawn on the device in their own dtype: the host never holds 38 GB."""
    with torch.device("meta"):
        refiner = instantiate(node)
    refiner.to_empty(device=device)
    random = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for name, parameter in refiner.named_parameters():
            fan_in = parameter.shape[-1] if parameter.ndim > 1 else 1
            if parameter.ndim == 1 and name.endswith("weight"):
                parameter.fill_(1.0)
            else:
                parameter.normal_(std=fan_in**-0.5 if parameter.ndim > 1 else 0.02, generator=random)
    return refiner


def shared(refiner: LTX2Refiner, node: dict[str, Any], kernels: str) -> LTX2Refiner:
    """Another refiner over the very weights of ``refiner``."""
    with torch.device("meta"):
        other = instantiate({**node, "kernels": kernels})
    other.load_state_dict(dict(refiner.named_parameters()), assign=True)
    return other


class Evaluation:
    """One evaluation's inputs, the same for every way."""

    def __init__(self, refiner: LTX2Refiner, clip: VideoShape, num_text: int, device: torch.device) -> None:
        torch.manual_seed(1)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, device=device)

        channels, *grid = refiner.spec.latent_shape(clip)
        self.grid = (grid[0], grid[1], grid[2])
        self.num_tokens = grid[0] * grid[1] * grid[2]
        config = refiner.transformer.config
        per_s = config.audio_sampling_rate / config.audio_hop_length / config.audio_scale_factor
        self.video = normal(1, self.num_tokens, channels)
        self.audio = normal(1, round(clip.frames / FPS * per_s), config.audio_in_channels)
        self.t = torch.full((1,), SIGMA, device=device)
        text = normal(1, num_text, config.caption_channels).to(refiner.transformer.dtype)
        # The mask lies on the host, as prompts do that were cached.
        self.prompts = PromptEmbeddings(
            text, text.clone(), torch.ones(1, num_text, dtype=torch.bool, device="cpu")
        )

    def run(self, refiner: LTX2Refiner) -> Tensor:
        with torch.no_grad():
            return refiner.velocities(self.video, self.audio, self.t, self.prompts, self.grid, FPS)[0]


@contextmanager
def masks_left_out(refiner: LTX2Refiner) -> Iterator[None]:
    """The stock transformer computes without text masks inside the block."""
    transformer = refiner.transformer
    forward = transformer.forward

    def maskless(**given: Any) -> Any:
        return forward(**{**given, "encoder_attention_mask": None, "audio_encoder_attention_mask": None})

    transformer.forward = maskless
    try:
        yield
    finally:
        del transformer.forward  # the class's own is left


def steps_of(
    stock: LTX2Refiner, fast: LTX2Refiner, evaluation: Evaluation
) -> dict[str, Callable[[], Tensor]]:
    def maskless() -> Tensor:
        with masks_left_out(stock):
            return evaluation.run(stock)

    return {
        "stock": lambda: evaluation.run(stock),
        "stock_no_mask": maskless,
        "compiled": lambda: evaluation.run(fast),
    }


def attention_rows(refiner: LTX2Refiner, clip: str, num_tokens: int, device: torch.device) -> list[dict]:
    """Self-attention of one block on random numbers, by backend; on a GPU only."""
    if device.type != "cuda":
        return []
    config = refiner.transformer.config
    shape = (1, config.num_attention_heads, num_tokens, config.attention_head_dim)
    query, key, value = (torch.randn(shape, device=device, dtype=refiner.transformer.dtype) for _ in range(3))
    chosen = SDPBackend(torch._fused_sdp_choice(query, key, value)).name

    def attend(backend: SDPBackend) -> Callable[[], object]:
        def step() -> None:
            with sdpa_kernel(backend):
                F.scaled_dot_product_attention(query, key, value)

        return step

    contestants = [Contestant(name, attend(backend)) for name, backend in BACKENDS.items()]
    flops = 4 * num_tokens**2 * shape[1] * shape[3]
    rows = []
    for way, timing in take_turns(contestants, 1, device).items():
        rows.append({"group": "attention", "clip": clip, "way": way, "flops": flops, **timing.to_dict()})
        sys.stdout.write(f"{clip} attention {way}: {rows[-1]['ms']} ms (stock gets {chosen})\n")
        rows[-1]["stock_gets"] = chosen
    return rows


def count_flops(node: dict[str, Any], clip: VideoShape, num_text: int) -> int:
    """Of matrix products and attention, counted on tensors without numbers."""
    meta = torch.device("meta")
    with meta:
        refiner = instantiate(node)
        evaluation = Evaluation(refiner, clip, num_text, meta)
        with FlopCounterMode(display=False) as counter:
            evaluation.run(refiner)
    return counter.get_total_flops()


def measure(
    node: dict[str, Any], stock: LTX2Refiner, clip_text: str, size: str, ways: Sequence[str], rounds: int,
    device: torch.device,
) -> list[dict[str, Any]]:  # fmt: skip
    clip = video_size(clip_text)
    evaluation = Evaluation(stock, clip, NUM_TEXT[size], device)
    torch.compiler.reset()
    fast = shared(stock, node, "compiled")
    steps = steps_of(stock, fast, evaluation)
    resident = sum(parameter.nbytes for parameter in stock.parameters())
    contestants = [Contestant(way, steps[way], resident=resident) for way in ways]
    timings = take_turns(contestants, rounds, device)
    expected = steps["stock"]()
    flops = count_flops(node, clip, NUM_TEXT[size])
    rows = attention_rows(stock, clip_text, evaluation.num_tokens, device)
    for way in ways:
        row = {"group": "stage_two", "clip": clip_text, "way": way, "num_tokens": evaluation.num_tokens}
        row |= {"flops": flops, "wanted_ms": WANTED_MS.get(clip_text), **timings[way].to_dict()}
        if row["error"] is None:
            found = steps[way]()
            row["distance"] = float((found - expected).norm() / expected.norm())
            if device.type == "cuda" and way in ("stock", "compiled"):
                row["breakdown"] = breakdown(steps[way])
        number = (
            row["error"] or f"{row['ms']:.1f} ms, peak {row['peak_gib'] or 0:.1f} GiB, {row['distance']:.1e}"
        )
        sys.stdout.write(f"{clip_text} {way}: {number} from stock, first call {row['first_s'] or 0:.1f} s\n")
        sys.stdout.flush()
        rows.append(row)
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", choices=tuple(CLIPS), default="2b")
    parser.add_argument("--clip", nargs="+", metavar="HxWxF", help="(1408x2560x81 704x1280x81)")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--rounds", type=positive, default=2)
    given = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    file = given.out / "results.json"
    record: dict[str, Any] = {"rows": []}
    if file.is_file():
        record = json.loads(file.read_text())
    torch.set_float32_matmul_precision("high")
    node = refiner_node(given.size)
    record.setdefault(
        "facts",
        {"what": "stage_two", **environment(device), "peak_flops": peak_flops(device), "refiner": node},
    )
    given.out.mkdir(parents=True, exist_ok=True)
    if "ceilings" not in record:
        record["ceilings"] = ceilings(device)
    stock: LTX2Refiner | None = None
    for clip in given.clip or CLIPS[given.size]:
        if any(row["clip"] == clip for row in record["rows"]):
            continue
        stock = stock or random_refiner(node, device)
        record["rows"] += measure(node, stock, clip, given.size, given.ways, given.rounds, device)
        write_json(file, record)


if __name__ == "__main__":
    main()
