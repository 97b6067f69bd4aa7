"""Every weight format from disk into a network, and what is said of files that cannot be read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sana_train.models import keys
from sana_train.models.checkpoint import build_empty, load_dit, read_state, write_diffusers, write_nvlabs
from sana_train.models.sana_video import SanaVideoDiT
from sana_train.models.weight_files import damage
from tests.models.conftest import SIZES


def _same(left, right):
    assert left.keys() == right.keys()
    for key, value in left.items():
        assert torch.equal(value, right[key]), key


def _sharded(state, folder: Path, num_shards: int = 3) -> None:
    """A diffusers folder in shards, as its own `save_pretrained` lays them out."""
    converted, side = keys.to_diffusers(state)
    names, weight_map = sorted(converted), {}
    folder.mkdir(parents=True)
    for i in range(num_shards):
        file = f"diffusion_pytorch_model-{i + 1:05d}-of-{num_shards:05d}.safetensors"
        save_file({name: converted[name].contiguous() for name in names[i::num_shards]}, folder / file)
        weight_map |= dict.fromkeys(names[i::num_shards], file)
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    save_file(side, folder / "null_context.safetensors")


def test_every_format_reads_back_from_disk(make_dit, tmp_path):
    state = make_dit().state_dict()
    save_file(state, tmp_path / "model.safetensors")
    _same(read_state(tmp_path), state)
    write_nvlabs(state, tmp_path / "sana.pth")
    _same(read_state(tmp_path / "sana.pth"), state)
    assert torch.load(tmp_path / "sana.pth", weights_only=True).keys() == {"state_dict"}
    write_diffusers(state, tmp_path / "published" / "transformer")
    _same(read_state(tmp_path / "published"), state)
    (tmp_path / "published" / "transformer" / "null_context.safetensors").unlink()
    assert "null_context" not in read_state(tmp_path / "published")


def test_a_view_of_mapped_weights_is_saved_without_the_file_around_it(make_dit, tmp_path):
    state = make_dit().state_dict()
    write_diffusers(state, tmp_path / "published")
    write_nvlabs(read_state(tmp_path / "published"), tmp_path / "sana.pth")
    num_bytes = sum(value.nbytes for value in state.values())
    assert (tmp_path / "sana.pth").stat().st_size < 1.2 * num_bytes + 2**17


def test_shards_are_those_of_the_index(make_dit, tmp_path):
    state = make_dit().state_dict()
    _sharded(state, tmp_path / "transformer")
    # A half-precision variant often lies beside them, under the same names.
    save_file({"proj_out.bias": torch.full((4,), 7.0)}, tmp_path / "transformer" / "variant.fp16.safetensors")
    _same(read_state(tmp_path), state)
    (tmp_path / "transformer" / "diffusion_pytorch_model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ValueError, match=r"1 are missing: diffusion_pytorch_model-00002-of-00003.*fetch"):
        read_state(tmp_path)


def test_shards_of_diffusers_own_class_read_back(make_dit, tmp_path):
    from tests.models.test_parity import _diffusers_twin

    model = make_dit()
    _diffusers_twin(model).save_pretrained(tmp_path, max_shard_size="64KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    read = read_state(tmp_path)
    state = model.state_dict()
    del state["null_context"]  # diffusers has no place for it
    _same(read, state)


def test_a_checkpoint_gives_averaged_weights_or_those_as_trained(make_dit, tmp_path):
    raw, ema = make_dit().state_dict(), {name: value + 1 for name, value in make_dit().state_dict().items()}
    save_file(raw, tmp_path / "model.safetensors")
    _same(read_state(tmp_path), raw)
    save_file(ema, tmp_path / "ema.safetensors")
    _same(read_state(tmp_path), ema)
    _same(read_state(tmp_path, "raw"), raw)


def test_a_network_is_loaded_from_meta_in_the_wanted_dtype(make_dit, tmp_path):
    state = make_dit().state_dict()
    write_nvlabs(state, tmp_path / "sana.pth")
    for dtype in (torch.float32, torch.bfloat16):
        model = load_dit(lambda: SanaVideoDiT(**SIZES), read_state(tmp_path / "sana.pth"), "cpu", dtype)
        _same(model.state_dict(), {name: value.to(dtype) for name, value in state.items()})
    with torch.no_grad():  # its memory is its own, not the file's
        model.null_context.zero_()
    _same(read_state(tmp_path / "sana.pth"), state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 96}, "width 96 against 48"),
        ({"depth": 3}, "depth 3 against 2"),
        ({"mlp_ratio": 2.0}, "hidden width 96 against 120"),
        ({"caption_dim": 12}, "caption width 12 against 10"),
        ({"latent_channels": 6}, "latent channels 6 against 4"),
        ({"latent_channels": 1, "patch_size": [1, 2, 2]}, "latent channels 1 against 4, patch 1x2x2 against"),
        ({"max_tokens": 9}, r"null_context \(9, 10\) against \(7, 10\)"),
    ],
)
def test_a_file_of_another_geometry_is_named_beside_the_model(make_dit, tmp_path, change, message):
    write_nvlabs(make_dit(**change).state_dict(), tmp_path / "sana.pth")
    with pytest.raises(ValueError, match=message):
        load_dit(lambda: SanaVideoDiT(**SIZES), read_state(tmp_path / "sana.pth"), "cpu")


def test_buffers_that_would_be_lost_are_noticed():
    def build() -> torch.nn.Module:
        module = torch.nn.Linear(2, 2)
        module.register_buffer("table", torch.ones(3), persistent=False)
        return module

    with pytest.raises(TypeError, match="table"):
        build_empty(build, "cpu")


def test_missing_or_foreign_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"no DiT weights at .*nowhere.*hf download"):
        read_state(tmp_path / "nowhere")
    (tmp_path / "weights.bin").write_bytes(b"0")
    with pytest.raises(ValueError, match="convert it first"):
        read_state(tmp_path / "weights.bin")
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(ValueError, match=r"no state dict.*found list"):
        read_state(tmp_path / "list.pth")
    torch.save({"epoch": 3, "optimizer": {}}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"no state dict.*'epoch', 'optimizer'"):
        read_state(tmp_path / "other.pth")


@pytest.mark.parametrize("name", ["model.safetensors", "sana.pth"])
def test_truncated_files_say_so(make_dit, tmp_path, name):
    state = make_dit().state_dict()
    file = tmp_path / name
    save_file(state, file) if file.suffix == ".safetensors" else write_nvlabs(state, file)
    file.write_bytes(file.read_bytes()[:-5000])
    with pytest.raises(ValueError, match=rf"{name} is damaged or incomplete at [\d,]+ bytes.*fetch it again"):
        read_state(file)


def test_damage_shows_without_reading_the_numbers(make_dit, tmp_path):
    state = make_dit().state_dict()
    for name in ("model.safetensors", "sana.pth"):
        file = tmp_path / name
        save_file(state, file) if file.suffix == ".safetensors" else write_nvlabs(state, file)
        whole = file.read_bytes()
        assert damage(file) == ""
        for part in (whole[:-1], whole[: len(whole) // 2], whole[:5], b""):
            file.write_bytes(part)
            assert f"{file} is damaged or incomplete at {len(part):,} bytes" in damage(file)
    file = tmp_path / "model.safetensors"
    file.write_bytes((4).to_bytes(8, "little") + b"[{}]")
    assert "the header cannot be read" in damage(file)
    file = tmp_path / "sana.pth"
    file.write_text("version https://git-lfs.github.com/spec/v1")
    assert "at 42 bytes (it does not begin as a file of torch.save" in damage(file)
    torch.save(state, file, _use_new_zipfile_serialization=False)
    assert damage(file) == ""  # old, and whole: reading it says what to do


def test_a_file_of_another_user_is_said_to_be_one(make_dit, tmp_path, monkeypatch):
    write_nvlabs(make_dit().state_dict(), tmp_path / "sana.pth")

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert "sana.pth cannot be read (Permission denied); ask its owner" in damage(tmp_path / "sana.pth")


def test_a_folder_around_an_nvlabs_file_names_it(make_dit, tmp_path):
    file = tmp_path / "repository" / "checkpoints" / "sana.pth"
    write_nvlabs(make_dit().state_dict(), file)
    with pytest.raises(ValueError, match=rf"deeper down there is {file}: give that file"):
        read_state(tmp_path / "repository")


class _RunsCode:
    def __reduce__(self):
        return exec, ("raise SystemExit('code of the file was run')",)


def test_pickled_code_is_refused_with_a_reason(make_dit, tmp_path):
    torch.save({"state_dict": make_dit().state_dict(), "hook": _RunsCode()}, tmp_path / "sana.pth")
    with pytest.raises(ValueError, match=r"pickled Python objects.*exec.*would run code.*tensors alone"):
        read_state(tmp_path / "sana.pth")


_MEASURE = """
import gc, sys, threading, time
from pathlib import Path
import torch
from sana_train.adaptation.latent_swap import LatentSwap
from sana_train.models.checkpoint import build_empty, load_dit, read_state
from sana_train.models.sana_video import SanaVideoDiT
from sana_train.models.weight_files import damage

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

def peak_of(load):
    samples, stop = [], threading.Event()
    def sample():
        while not stop.is_set():
            samples.append(anonymous())
            time.sleep(0.001)
    gc.collect()
    before = anonymous()
    thread = threading.Thread(target=sample)
    thread.start()
    model = load()
    stop.set(); thread.join()
    return (max(samples) - before) / sum(value.nbytes for value in model.state_dict().values())

def build(depth={depth}, width={width}):
    return SanaVideoDiT(128, [1, 1, 1], depth, width, 8, 8, 3.0, 256, 32)

# What torch loads at first use is not counted.
load_dit(lambda: build(1, 64), build(1, 64).state_dict(), "cpu")
for path in sys.argv[1:]:
    for dtype in (torch.float32, torch.bfloat16):
        print(peak_of(lambda: load_dit(build, read_state(Path(path)), "cpu", dtype)))

def adapt():
    model = build_empty(build, "cpu")
    swap = LatentSwap(["patch_embed.*", "final_layer.linear.*"])
    swap.apply(model, read_state(Path(sys.argv[1])), seed=0)
    return model

print(peak_of(adapt))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_loading_and_adapting_take_one_copy_of_the_weights(tmp_path):
    """Anonymous memory, sampled each ms, over the network's own bytes: 176 MB in fp32, 88 MB in bf16."""
    width, depth = 512, 8
    with torch.device("meta"):
        shapes = SanaVideoDiT(128, [1, 1, 1], depth, width, 8, 8, 3.0, 256, 32).state_dict()
    state = {key: torch.ones(value.shape) for key, value in shapes.items()}
    paths = [tmp_path / "sana.pth", tmp_path / "published", tmp_path / "ours"]
    write_nvlabs(state, paths[0])
    _sharded(state, paths[1])
    paths[2].mkdir()
    save_file(state, paths[2] / "model.safetensors")
    del state
    script = _MEASURE.replace("{width}", str(width)).replace("{depth}", str(depth))
    command = [sys.executable, "-c", script, *map(str, paths)]
    returns_memory = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed counts no longer
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=returns_memory)
    ratios = [float(line) for line in done.stdout.split()]
    assert len(ratios) == 7
    assert min(ratios) > 0.9  # it measures the weights at all
    assert max(ratios) < 1.15, ratios
