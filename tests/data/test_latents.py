"""The latent-shard format: what is kept is what the encoders gave, and only for those encoders."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load
from torch import Tensor

from sana_train.data.latent_clips import LatentClips
from sana_train.data.latents import precompute_latents
from sana_train.data.resident import encode_resident
from sana_train.types import Batch

MADE_BY = {"autoencoder_fingerprint": "block-means-1.0", "text_fingerprint": "word-hashes"}


@pytest.fixture
def cache(squares: Any, block_means: Any, word_hashes: Any, tmp_path: Path) -> Path:
    out = tmp_path / "latents"
    return precompute_latents(squares, block_means, word_hashes, out, batch_size=3, clips_per_shard=4)


def open_cache(cache: Path) -> LatentClips:
    return LatentClips(cache, MADE_BY)


def test_disk_resident_and_online_agree(
    squares: Any, block_means: Any, word_hashes: Any, cache: Path
) -> None:
    clips = open_cache(cache)
    online = encode_resident(squares, {"it": block_means}, word_hashes, "cpu", 5, dtype=torch.float32)["it"]
    indices = [9, 3, 4, 3]
    truth = online.batch(indices)
    for source in (clips, clips.resident()):
        assert len(source) == 10
        assert source.spec == block_means.spec
        batch = source.batch(indices)
        assert batch.captions == truth.captions
        for name in ("index", "weight", "latents", "context", "context_mask"):
            assert torch.equal(getattr(batch, name), getattr(truth, name)), name
        for name, value in truth.attributes.items():
            assert torch.equal(batch.attributes[name], value)


def test_latents_are_raw_and_text_is_unpadded(
    squares: Any, block_means: Any, word_hashes: Any, tmp_path: Path
) -> None:
    class Scaled(type(block_means)):  # type: ignore[misc]
        def normalise(self, latents: Tensor) -> Tensor:
            return 100 * latents

    out = precompute_latents(squares, Scaled(), word_hashes, tmp_path / "raw", batch_size=5, dtype="bfloat16")
    tensors = load(open_cache(out).folder.read(2)["safetensors"])
    expected = block_means.encode(squares.clip(2)[None])[0]
    assert tensors["latents"].dtype == torch.bfloat16
    assert torch.equal(tensors["latents"], expected.to(torch.bfloat16))
    assert tensors["context"].shape == (len(squares.caption(2).split()), word_hashes.dim)


def test_float16_is_float32_rounded_once(
    squares: Any, block_means: Any, word_hashes: Any, tmp_path: Path
) -> None:
    out = precompute_latents(squares, block_means, word_hashes, tmp_path / "h", batch_size=5, dtype="float16")
    clips = LatentClips(out, {"dtype": "float16"})
    exact = block_means.encode(squares.batch([2]).video)
    for source in (clips, clips.resident()):
        batch = source.batch([2])
        assert batch.latents is not None
        assert torch.equal(batch.latents.float(), exact.half().float())


def test_latents_beyond_float16_end_the_encoding(
    squares: Any, block_means: Any, word_hashes: Any, tmp_path: Path
) -> None:
    class Loud(type(block_means)):  # type: ignore[misc]
        def encode(self, video: Tensor) -> Tensor:
            return 1e6 * super().encode(video)

    arguments = (squares, Loud(), word_hashes, tmp_path / "loud")
    with pytest.raises(ValueError, match=r"go beyond float16.*latents.dtype=bfloat16"):
        precompute_latents(*arguments, batch_size=5, dtype="float16")
    assert not (tmp_path / "loud").exists()


@pytest.mark.parametrize(
    ("field", "found", "wanted"),
    [
        ("autoencoder_fingerprint", "block-means-1.0", "other-vae"),
        ("text_fingerprint", "word-hashes", "gemma"),
        ("decoder", "none, clips are rendered", "libavcodec 61"),
    ],
)
def test_cache_of_something_else_is_refused_by_field(
    cache: Path, field: str, found: str, wanted: str
) -> None:
    with pytest.raises(ValueError, match=rf"{field}  found   {found}\n +wanted  {wanted}\n") as refused:
        LatentClips(cache, {**MADE_BY, field: wanted})
    assert str(refused.value).count("wanted  ") == 1  # only what differs


def test_cache_is_not_overwritten_by_another_autoencoder(
    squares: Any, block_means: Any, word_hashes: Any, cache: Path
) -> None:
    other = type(block_means)(gain=2.0)
    with pytest.raises(ValueError, match=r"found 'block-means-1.0', wanted 'block-means-2.0'"):
        precompute_latents(squares, other, word_hashes, cache, batch_size=3, clips_per_shard=4)
    open_cache(cache)


def test_folder_without_spec_is_refused(cache: Path) -> None:
    (cache / "spec.json").unlink()
    with pytest.raises(ValueError, match=r"holds no latent shards: spec\.json: no such file"):
        open_cache(cache)


def test_lost_shard_is_noticed(cache: Path) -> None:
    (cache / "shard-000001.tar").unlink()
    with pytest.raises(ValueError, match=r"holds 6 clips, its spec\.json says 10"):
        open_cache(cache)


def test_spec_says_what_made_it(cache: Path, block_means: Any) -> None:
    record = json.loads((cache / "spec.json").read_text())
    assert record["autoencoder"] == "BlockMeans"
    assert record["clips_fingerprint"] == "squares-10-0"
    assert record["latent_spec"] == block_means.spec.to_dict()


def test_interrupted_encoding_goes_on_where_it_stopped(
    squares: Any, block_means: Any, word_hashes: Any, tmp_path: Path, cache: Path
) -> None:
    class Breaks(type(block_means)):  # type: ignore[misc]
        calls = 0

        def encode(self, video: Tensor) -> Tensor:
            self.calls += 1
            if self.calls == 4:  # shard 0 takes two calls, shard 1 fails at its second
                raise RuntimeError("out of memory")
            return super().encode(video)

    out, breaks = tmp_path / "broken", Breaks()
    arguments: dict[str, Any] = {"batch_size": 3, "clips_per_shard": 4}
    with pytest.raises(RuntimeError, match="out of memory"):
        precompute_latents(squares, breaks, word_hashes, out, **arguments)
    assert not out.exists()
    precompute_latents(squares, breaks, word_hashes, out, **arguments)  # encodes shards 1 and 2 only
    assert breaks.calls == 4 + 2 + 1
    # The class name aside, the folder is the one an uninterrupted run writes.
    for path in sorted(cache.glob("shard-*")):
        assert (out / path.name).read_bytes() == path.read_bytes()


def test_holes_keep_their_place_and_are_counted(
    squares: Any, block_means: Any, word_hashes: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class OneBad(type(squares)):  # type: ignore[misc]
        def batch(self, indices: Any) -> Batch:
            batch = super().batch(indices)
            return replace(batch, weight=(batch.index != 0).float())

    out = precompute_latents(OneBad(10), block_means, word_hashes, tmp_path / "holes", batch_size=4)
    with caplog.at_level(logging.WARNING):
        clips = open_cache(out)
    assert [message.split(";")[0] for message in caplog.messages] == [
        f"1 of 10 clips in {out} are holes of weight 0"
    ]
    assert clips.holes == {0: "a hole in the clips"}
    for source in (clips, clips.resident()):
        batch = source.batch([1, 0, 2])
        assert batch.weight.tolist() == [1, 0, 1]
        assert batch.context_mask is not None
        assert batch.context_mask.any(dim=1).all()  # attention over no tokens would be NaN
        assert batch.captions[2] == squares.caption(2)
