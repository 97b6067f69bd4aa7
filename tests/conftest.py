"""What is skipped (tests/needs.py); tiny text encoders for tests of several folders."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests import needs
from tests.needs import pytest_sessionfinish, pytest_terminal_summary  # noqa: F401 - pytest finds them by name

# Workers of xdist share the cores already; what they start inherits it.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Without a GPU Triton's kernels run in its interpreter, as it decides when it is first imported, by torch.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# A worker takes file after file: the longest first, or one of them is left for the end, alone.
LONGEST_FIRST = (
    "slurm/test_runs.py",
    "slurm/test_scripts.py",
    "cli/test_kills.py",
    "cli/test_precompute.py",
    "cli/test_train_ranks.py",
    "cli/test_prepare_data.py",
    "cli/test_dashboard.py",
    "training/test_interruption.py",
    "training/test_rank_equality.py",
    "training/test_background_save.py",
    "training/test_watchdog.py",
    "models/kernels/test_network.py",
    "docs/test_commands.py",
)
PROMPTS = Path(__file__).parents[1] / "data" / "prompts"


def pytest_configure(config: pytest.Config) -> None:
    needs.pytest_configure(config)
    config.option.loadscopereorder = (
        False  # xdist's own order: by the number of a file's tests, the fewest last
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    needs.pytest_collection_modifyitems(items)
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(scope="session")
def tiny_gemma2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Gemma-2 of width 16 in fp32 and a tokenizer of Gemma's kind, in files as on the hub."""
    import torch
    from transformers import Gemma2Config, Gemma2ForCausalLM

    path = tmp_path_factory.mktemp("gemma2")
    tokenizer = _tiny_tokenizer()
    tokenizer.save_pretrained(path)
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        query_pre_attn_scalar=8,
        initializer_range=0.6,  # so that tokens attend unevenly
        attn_logit_softcapping=2.0,  # so that it matters whether logits are capped
    )
    Gemma2ForCausalLM(config).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def tiny_ltx2_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LTX-2's text side as on the hub, random: Gemma-3 of width 16, connectors with 8 registers, in fp32."""
    import torch
    from diffusers.pipelines.ltx2 import LTX2TextConnectors
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    path = tmp_path_factory.mktemp("ltx2_text")
    tokenizer = _tiny_tokenizer()
    tokenizer.save_pretrained(path / "tokenizer")
    torch.manual_seed(0)
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "initializer_range": 0.6,
        "layer_types": ["sliding_attention", "full_attention"],
        "sliding_window": 4,
    }
    vision = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "image_size": 8,
        "patch_size": 4,
    }
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    Gemma3ForConditionalGeneration(config).save_pretrained(path / "text_encoder")
    LTX2TextConnectors(
        caption_channels=16,
        text_proj_in_factor=3,
        video_connector_num_attention_heads=2,
        video_connector_attention_head_dim=8,
        video_connector_num_layers=1,
        video_connector_num_learnable_registers=8,
        audio_connector_num_attention_heads=2,
        audio_connector_attention_head_dim=8,
        audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=8,
    ).save_pretrained(path / "connectors")
    return path


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random CLIP as transformers saves it: 32 px, 12 tokens, words as tokens."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("clip")
    words = ["<pad>", "<start>", "<end>", "<unk>", "a", "red", "blue", "cube", "disc", "drifts", "left"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 2)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<start>",
        eos_token="<end>",
        unk_token="<unk>",
    ).save_pretrained(path)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": len(words), "max_position_embeddings": 12, "bos_token_id": 1,
        "eos_token_id": 2, "pad_token_id": 0}  # fmt: skip
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config=text, vision_config={**sizes, "image_size": 32, "patch_size": 8}, projection_dim=8
    )
    CLIPModel(config).save_pretrained(path)
    return path


def _tiny_tokenizer() -> Any:
    """Spaces become part of the word behind them, so a word and its space are one token."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import GemmaTokenizer

    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")  # no merges across words
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=specials, show_progress=False)
    captions = "a red cube drifts left, a blue disc above a red cube"
    trained.train_from_iterator(
        [*(PROMPTS / "sana_instruction.txt").read_text().splitlines(), captions] * 4, trainer
    )
    model = json.loads(trained.to_str())["model"]
    tokenizer = GemmaTokenizer(vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]])
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", 2)]
    )
    return tokenizer
