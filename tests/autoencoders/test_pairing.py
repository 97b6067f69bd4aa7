"""Frame pairing against brute force over sets of frames, and the published spaces by hand."""

from __future__ import annotations

import itertools
import random

import pytest

from sana_train.autoencoders.pairing import FramePair, latent_edges, pair_frames
from sana_train.types import LatentSpec, VideoShape

LTX2 = LatentSpec(128, 8, 32, 32, "causal")
WAN = LatentSpec(16, 4, 8, 8, "causal")
DCAE_V = LatentSpec(64, 4, 32, 32, "chunked", skip_frames=1)
DCAE_V_FROM_0 = LatentSpec(64, 4, 32, 32, "chunked", skip_frames=0)


def spaces() -> list[LatentSpec]:
    return [
        LatentSpec(4, stride, 8, 8, temporal, skip)
        for stride in (1, 2, 3, 4, 8)
        for temporal in ("causal", "chunked")
        for skip in (0, 1, 2, 5)
    ]


def latent_of(spec: LatentSpec, frame: int) -> int | None:
    """The latent frame that codes a video frame, from the definition of the grids."""
    place = frame - spec.skip_frames
    if place < 0:
        return None
    return -(-place // spec.stride_t) if spec.temporal == "causal" else place // spec.stride_t


def frame_sets(spec: LatentSpec, num_frames: int) -> list[frozenset[int]]:
    """The video frames of every latent frame."""
    owners = [latent_of(spec, frame) for frame in range(num_frames)]
    count = 1 + max(owner for owner in owners if owner is not None)
    return [frozenset(f for f, owner in enumerate(owners) if owner == k) for k in range(count)]


def fits(spec: LatentSpec, num_frames: int) -> bool:
    """Whether every latent frame has all of its video frames."""
    if num_frames <= spec.skip_frames:
        return False
    sets = frame_sets(spec, num_frames)
    return all(len(s) == spec.stride_t for s in sets[1 if spec.temporal == "causal" else 0 :])


def brute_force(first: LatentSpec, second: LatentSpec, num_frames: int) -> list[FramePair]:
    """All pairs of runs of latents with the same frames that hold no shorter such pair."""
    runs = []
    for spec in (first, second):
        sets = frame_sets(spec, num_frames)
        stretches = itertools.combinations(range(len(sets) + 1), 2)
        runs.append({frozenset().union(*sets[a:b]): range(a, b) for a, b in stretches})
    equal = runs[0].keys() & runs[1].keys()
    shortest = [s for s in equal if not any(other < s for other in equal)]
    return [FramePair(range(min(s), max(s) + 1), runs[0][s], runs[1][s]) for s in sorted(shortest, key=min)]


@pytest.mark.parametrize("num_frames", [1, 4, 6, 9, 10, 13, 17, 18, 21, 25, 29])
def test_pairs_are_those_of_brute_force(num_frames: int) -> None:
    """Refusals too: where there is nothing to pair, and only there."""
    fitting = [spec for spec in spaces() if fits(spec, num_frames)]
    every = list(itertools.product(fitting, repeat=2))
    for first, second in random.Random(num_frames).sample(every, min(60, len(every))):
        expected = brute_force(first, second, num_frames)
        if not expected:
            with pytest.raises(ValueError, match=r"no frames of a .* are whole latents in both"):
                pair_frames(first, second, num_frames)
            continue
        pairing = pair_frames(first, second, num_frames)
        assert list(pairing.pairs) == expected
        sets = [frame_sets(spec, num_frames) for spec in (first, second)]
        coded = [frozenset().union(*each) for each in sets]
        assert frozenset(pairing.frames) == coded[0] & coded[1]
        assert pairing.num_latents == (len(sets[0]), len(sets[1]))


@pytest.mark.parametrize("spec", [LTX2, WAN, DCAE_V], ids=["ltx2", "wan", "dcae_v"])
def test_a_clip_that_fits_one_space_alone_is_refused_from_either_side(spec: LatentSpec) -> None:
    for num_frames in range(1, 90):
        if not fits(spec, num_frames):
            each = LatentSpec(4, 1, 8, 8, "chunked")  # every frame a latent: fits any clip
            for pair in ((spec, each), (each, spec)):
                with pytest.raises(ValueError, match=r"leave the last latent|takes 1 \+ \d+k|no frames left"):
                    pair_frames(*pair, num_frames)


@pytest.mark.parametrize("spec", spaces(), ids=str)
def test_edges_are_the_sets_and_as_many_as_the_autoencoder_says(spec: LatentSpec) -> None:
    checked = 0
    for num_frames in range(1, 40):
        if not fits(spec, num_frames):
            with pytest.raises(ValueError, match="frames"):
                latent_edges(spec, num_frames)
            continue
        edges = latent_edges(spec, num_frames)
        expected = [frozenset(range(a, b)) for a, b in itertools.pairwise(edges)]
        assert expected == frame_sets(spec, num_frames)
        assert len(edges) - 1 == spec.latent_shape(VideoShape(num_frames, 8, 8))[1]
        checked += 1
    assert checked >= 4


def test_swapping_the_spaces_swaps_the_sides() -> None:
    there, back = pair_frames(LTX2, WAN, 81), pair_frames(WAN, LTX2, 81)
    assert [(p.frames, p.first, p.second) for p in there.pairs] == [
        (p.frames, p.second, p.first) for p in back.pairs
    ]
    assert there.num_latents == back.num_latents[::-1]


def test_ltx2_and_dcae_v_pair_one_to_two_behind_frame_0() -> None:
    pairing = pair_frames(LTX2, DCAE_V, 81)
    assert pairing.frames == range(1, 81)
    assert pairing.num_latents == (11, 20)
    assert pairing.pairs == tuple(
        FramePair(range(8 * k - 7, 8 * k + 1), range(k, k + 1), range(2 * k - 2, 2 * k)) for k in range(1, 11)
    )


def test_ltx2_and_wan_pair_on_every_frame() -> None:
    pairing = pair_frames(LTX2, WAN, 81)
    assert pairing.frames == range(81)
    assert pairing.num_latents == (11, 21)
    assert pairing.pairs[0] == FramePair(range(1), range(1), range(1))
    assert pairing.pairs[1:] == tuple(
        FramePair(range(8 * k - 7, 8 * k + 1), range(k, k + 1), range(2 * k - 1, 2 * k + 1))
        for k in range(1, 11)
    )


def test_wan_and_dcae_v_pair_one_to_one_behind_frame_0() -> None:
    pairing = pair_frames(WAN, DCAE_V, 17)
    assert [(list(p.first), list(p.second)) for p in pairing.pairs] == [([k], [k - 1]) for k in range(1, 5)]


def test_dcae_v_from_frame_0_has_no_exact_partner() -> None:
    """Frames 0..79 against LTX-2's 8k-7..8k: off by one everywhere, so it is refused, not rounded."""
    with pytest.raises(
        ValueError, match=r"81 frames leave the last latent .* short by 3; cut the clip to 80"
    ):
        pair_frames(LTX2, DCAE_V_FROM_0, 81)
    with pytest.raises(ValueError, match=r"takes 1 \+ 8k frames, got 80; cut the clip to 73"):
        pair_frames(LTX2, DCAE_V_FROM_0, 80)


def test_a_clip_too_short_for_one_latent_is_not_told_to_be_cut() -> None:
    with pytest.raises(ValueError, match=r"3 frames leave .* short by 2; give it 5$"):
        pair_frames(DCAE_V, DCAE_V, 3)


def test_grids_that_never_begin_together_are_refused() -> None:
    twos, threes = LatentSpec(4, 2, 8, 8, "chunked", 0), LatentSpec(4, 3, 8, 8, "chunked", 1)
    with pytest.raises(
        ValueError, match=r"no frames of a 4-frame clip .* chunked on 3k frames after 1 skipped"
    ):
        pair_frames(twos, threes, 4)


def test_an_image_pairs_with_an_image() -> None:
    assert pair_frames(LTX2, WAN, 1).pairs == (FramePair(range(1), range(1), range(1)),)
    with pytest.raises(ValueError, match="no frames left of 1 after skipping 1"):
        pair_frames(LTX2, DCAE_V, 1)
