"""A trained DiT in other programs' formats computes what it did here, or is not published."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sana_train.autoencoders.weights import read_space
from sana_train.cli import convert
from sana_train.cli.diffusers_dit import diffusers_class
from sana_train.cli.load import REPOSITORY
from sana_train.flow.guidance import ClassifierFreeGuidance
from sana_train.flow.samplers import DPMSolverPP2M, Euler
from sana_train.flow.schedules import CustomSigmas, ShiftedLinear
from sana_train.generation.generator import Generator
from sana_train.models.checkpoint import load_dit, read_state
from sana_train.models.sana_video import SanaVideoDiT
from sana_train.training.checkpoint import save_checkpoint
from sana_train.utils.files import write_json
from tests.flow.reference_scheduler import published_scheduler
from tests.models.conftest import SIZES, build

SPACE = {
    "autoencoder": "package.Class",
    "fingerprint": "0123456789abcdef",
    "latent_spec": {"channels": 4, "stride_t": 4, "stride_h": 8, "stride_w": 8},
    "mean": [0.0, 0.1, 0.2, 0.3],
    "std": [1.0, 1.1, 1.2, 1.3],
}
TINY = REPOSITORY / "data" / "tiny"


def run_of(**changes: Any) -> dict[str, Any]:
    """What a run writes beside its weights."""
    model = {**SIZES, **changes, "_target_": "sana_train.models.sana_video.SanaVideoDiT", "compat": "none"}
    return {
        "run_id": "mine",
        "step": 500,
        "config": {f"model.{key}": value for key, value in model.items()} | {"training.seed": 0},
        "autoencoders": {"target": SPACE["fingerprint"]},
        "latent_space": SPACE,
    }


def shifted(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value * 1.01 for name, value in state.items()}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    state = build().state_dict()
    save_checkpoint(tmp_path / "checkpoint", state, shifted(state), None, run_of())
    return tmp_path / "checkpoint"


def run(*words: Any) -> None:
    convert.main([str(word) for word in words])


@pytest.mark.parametrize("weights", ["ema", "raw"])
@pytest.mark.parametrize("to", ["diffusers", "nvlabs"])
def test_weights_and_latent_space_arrive(
    checkpoint: Path, tmp_path: Path, to: str, weights: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / ("dit" if to == "diffusers" else "dit.pth")
    run(checkpoint, out, "--to", to, "--weights", weights)
    assert "differs by" in capsys.readouterr().out
    raw = build().state_dict()
    expected, written = (raw if weights == "raw" else shifted(raw)), read_state(out)
    assert written.keys() == expected.keys()
    assert all(torch.equal(written[name], value) for name, value in expected.items())
    record = json.loads(
        (out / "sana_train.json" if to == "diffusers" else out.with_suffix(".json")).read_text()
    )
    assert record["latent_space"] == SPACE
    assert record["made_by"] == {"run_id": "mine", "steps": 500, "weights": weights}
    assert record["verified"]["difference"] <= 1e-5
    assert str(tmp_path) not in json.dumps(record)  # it is shipped: it names no path of this machine
    assert sorted(path.name for path in out.parent.iterdir()) == (
        ["dit"] if to == "diffusers" else ["dit.json", "dit.pth"]
    )


def test_what_was_trained_with_fused_kernels_is_compared_in_plain_pytorch(tmp_path: Path) -> None:
    """Beside diffusers' epsilons and timesteps, with which a network is compared, fused ones are refused."""
    state = build().state_dict()
    save_checkpoint(tmp_path / "checkpoint", state, state, None, run_of(kernels="fused"))
    run(tmp_path / "checkpoint", tmp_path / "dit", "--to", "diffusers")
    record = json.loads((tmp_path / "dit" / "sana_train.json").read_text())
    assert record["model"]["kernels"] == "fused"
    assert record["verified"]["difference"] <= record["verified"]["allowed"]


@pytest.mark.parametrize(
    "sizes",
    [
        {"latent_channels": 16, "patch_size": [1, 2, 2], "width": 72, "num_heads": 3, "caption_dim": 12},
        {"latent_channels": 128, "mlp_ratio": 3.0, "depth": 3, "cross_num_heads": 4},
    ],
    ids=["wan480p", "ltx2"],
)
def test_diffusers_own_class_computes_the_same(tmp_path: Path, sizes: dict[str, Any]) -> None:
    state = build(**sizes).state_dict()
    save_checkpoint(tmp_path / "checkpoint", state, None, None, run_of(**sizes))
    run(tmp_path / "checkpoint", tmp_path / "dit", "--to", "diffusers")
    theirs = diffusers_class().from_pretrained(tmp_path / "dit")
    ours = build(**sizes, compat="diffusers")
    assert theirs.config.sample_size == (30 if sizes["latent_channels"] == 16 else 22)
    torch.manual_seed(3)
    latents, t = torch.randn(2, ours.latent_channels, 3, 4, 6), torch.tensor([0.9, 0.1])
    context, mask = torch.randn(2, 7, ours.null_context.shape[1]), torch.arange(7) < torch.tensor([[7], [2]])
    with torch.no_grad():
        expected = ours(latents, t, ours.prepare(context, mask))
        found = theirs(latents, context, 1000 * t, encoder_attention_mask=mask, return_dict=False)[0]
    assert convert.relative_difference(found, expected) <= 1e-5


@pytest.mark.parametrize("to", ["diffusers", "nvlabs"])
@pytest.mark.parametrize("key", ["blocks.1.ffn.temporal.weight", "caption_embed.fc1.bias", "null_context"])
def test_what_computes_something_else_is_not_published(
    checkpoint: Path, tmp_path: Path, to: str, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = getattr(convert, f"write_{to}")
    monkeypatch.setattr(
        convert, f"write_{to}", lambda state, path: write({**state, key: state[key] * 1.05}, path)
    )
    with pytest.raises(SystemExit, match="differs from the checkpoint by"):
        run(checkpoint, tmp_path / "dit.pth", "--to", to)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_weights_that_are_no_numbers_are_not_published(tmp_path: Path) -> None:
    state = build().state_dict()
    state["final_layer.linear.bias"][0] = math.nan
    save_checkpoint(tmp_path / "checkpoint", state, None, None, run_of())
    with pytest.raises(SystemExit, match="differs from the checkpoint by nan"):
        run(tmp_path / "checkpoint", tmp_path / "dit", "--to", "diffusers")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_bad_input_is_one_sentence(checkpoint: Path, tmp_path: Path) -> None:
    cases = [
        ([tmp_path, "dit"], "neither a checkpoint nor an export.*step_0000500"),
        ([tmp_path / "nowhere", "dit"], "neither a checkpoint nor an export"),
        ([checkpoint, "dit.bin", "--to", "nvlabs"], r"does not end in \.pth"),
        ([checkpoint, checkpoint], "is there already"),
        ([checkpoint, "dit", "--autoencoder", TINY / "ltx2"], "trained in the space of 0123456789abcdef"),
        ([checkpoint, "dit", "--autoencoder", tmp_path], "no weights for an autoencoder"),
    ]
    for (source, out, *options), message in cases:
        options = options if "--to" in options else ["--to", "diffusers", *options]
        with pytest.raises(SystemExit, match=message):
            run(source, tmp_path / out, *options)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_an_export_holds_one_set_of_weights(tmp_path: Path) -> None:
    export = tmp_path / "export"
    export.mkdir()
    state = {name: value.to(torch.bfloat16) for name, value in build().state_dict().items()}
    save_file(state, export / "model.safetensors")
    write_json(export / "record.json", {**run_of(), "steps": 500})
    with pytest.raises(SystemExit, match="averaged weights only"):
        run(export, tmp_path / "dit", "--to", "diffusers", "--weights", "raw")
    run(export, tmp_path / "dit", "--to", "diffusers")
    written = read_state(tmp_path / "dit")
    assert {value.dtype for value in written.values()} == {torch.bfloat16}


def test_a_runs_own_directory_names_what_is_in_it(tmp_path: Path) -> None:
    for folder in ("export", "checkpoints/step_0000500", "checkpoints/step_0001000"):
        (tmp_path / "run" / folder).mkdir(parents=True)
        for name in ("model.safetensors", "run.json"):
            (tmp_path / "run" / folder / name).touch()
    with pytest.raises(SystemExit, match=r"give \S+/run/export or \S+/step_0001000 or \S+/step_0000500"):
        run(tmp_path / "run", tmp_path / "dit", "--to", "diffusers")


def test_a_checkpoint_without_statistics_asks_for_the_autoencoder(tmp_path: Path) -> None:
    known = read_space(TINY / "dcae_v")
    record = {**run_of(latent_channels=64), "autoencoders": {"target": known["fingerprint"]}}
    del record["latent_space"]
    save_checkpoint(tmp_path / "old", build(latent_channels=64).state_dict(), None, None, record)
    with pytest.raises(SystemExit, match=f"{known['fingerprint']}.*--autoencoder"):
        run(tmp_path / "old", tmp_path / "dit", "--to", "diffusers")
    run(tmp_path / "old", tmp_path / "dit", "--to", "diffusers", "--autoencoder", TINY / "dcae_v")
    assert json.loads((tmp_path / "dit" / "sana_train.json").read_text())["latent_space"] == known


def test_the_documented_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of docs/weights.md that start from what ships."""
    from tests.docs.test_commands import commands

    text = (REPOSITORY / "docs" / "weights.md").read_text()
    prefix = "python -m sana_train.cli.convert data/tiny/"
    shipped = [words for line in text.splitlines() if line.startswith(prefix) for words in commands(line)]
    assert {words[words.index("--to") + 1] for words in shipped} == {"diffusers", "nvlabs"}
    (tmp_path / "data").symlink_to(REPOSITORY / "data")
    monkeypatch.chdir(tmp_path)
    for words in shipped:
        convert.main(words[3:])
        assert read_state(Path(words[4])).keys() == read_state(TINY / "sana_dcae_v").keys()


def pipeline_of(folder: Path, scheduler: Any) -> Any:
    """diffusers' pipeline over a DiT that was converted into ``folder``; captions and latents are given."""
    from diffusers import SanaVideoPipeline

    save_checkpoint(folder / "checkpoint", build(caption_dim=10).state_dict(), None, None, run_of())
    run(folder / "checkpoint", folder / "transformer", "--to", "diffusers")
    parts: Any = {"tokenizer": None, "text_encoder": None, "vae": None}
    dit = diffusers_class().from_pretrained(folder / "transformer")
    pipeline = SanaVideoPipeline(transformer=dit, scheduler=scheduler, **parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def their_samples(
    pipeline: Any, null: Tensor, context: Tensor, mask: Tensor, noise: Tensor, **how: Any
) -> Tensor:
    """Latents of clips of 9 frames of 32 x 32 px."""
    return pipeline(
        prompt=None,
        negative_prompt=None,
        prompt_embeds=context,
        prompt_attention_mask=mask,
        negative_prompt_embeds=null.expand_as(context),
        negative_prompt_attention_mask=mask,  # the caption's own, as in training
        latents=noise,
        height=32,
        width=32,
        frames=9,
        use_resolution_binning=False,
        output_type="latent",
        return_dict=False,
        **how,
    )[0]


def test_diffusers_pipeline_gives_our_samples(tmp_path: Path) -> None:
    """From the same noise and captions, the folder in diffusers' pipeline leads to the same latents."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    # The shift is in the sigmas given.
    pipeline = pipeline_of(tmp_path, FlowMatchEulerDiscreteScheduler(shift=1.0))
    torch.manual_seed(5)
    noise, context = torch.randn(1, 4, 3, 4, 4), torch.randn(1, 7, 10)
    mask = torch.arange(7)[None] < 5
    schedule = ShiftedLinear(num_steps=6, shift=8.0)
    null = read_state(tmp_path / "transformer")["null_context"][None]
    how = {"sigmas": schedule.sigmas()[:-1].tolist(), "guidance_scale": 3.0}
    theirs = their_samples(pipeline, null, context, mask, noise, **how)
    generator = Generator(Euler(), schedule, ClassifierFreeGuidance(3.0))
    ours = load_dit(lambda: build(compat="diffusers"), read_state(tmp_path / "checkpoint"), "cpu")
    samples = generator(ours, context, mask, noise)
    assert convert.relative_difference(theirs, samples) <= 1e-5
    assert convert.relative_difference(theirs, noise) > 0.1


def test_the_published_way_of_sampling_gives_diffusers_samples(tmp_path: Path) -> None:
    """DPM-Solver++ 2M, 50 steps, guidance 6, flow shift 8, two captions of different lengths at once."""
    scheduler = published_scheduler()
    pipeline = pipeline_of(tmp_path, scheduler)
    torch.manual_seed(6)
    noise, context = torch.randn(2, 4, 3, 4, 4), torch.randn(2, 7, 10)
    mask = torch.arange(7) < torch.tensor([[7], [4]])
    null = read_state(tmp_path / "transformer")["null_context"][None]
    how = {"num_inference_steps": 50, "guidance_scale": 6.0}
    theirs = their_samples(pipeline, null, context, mask, noise, **how)
    generator = Generator(
        DPMSolverPP2M(), CustomSigmas(scheduler.sigmas.tolist()), ClassifierFreeGuidance(6.0)
    )

    class WholeTimesteps(SanaVideoDiT):
        """This scheduler tells the network whole timesteps; the sigmas it steps by are not rounded."""

        def _timestep(self, t: Tensor, num_frames: int) -> Tensor:
            nearest = (scheduler.sigmas - t[0]).abs().argmin()
            return torch.full_like(super()._timestep(t, num_frames), float(scheduler.timesteps[nearest]))

    sizes = {**SIZES, "compat": "diffusers"}
    ours = load_dit(lambda: WholeTimesteps(**sizes), read_state(tmp_path / "checkpoint"), "cpu")
    both = generator(ours, context, mask, noise)
    assert convert.relative_difference(theirs, both) <= 1e-5
    alone = [generator(ours, context[[i]], mask[[i]], noise[[i]]) for i in range(2)]
    assert convert.relative_difference(both, torch.cat(alone)) <= 1e-5
    assert convert.relative_difference(theirs, noise) > 0.1
