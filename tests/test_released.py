"""A checkpoint that is not converted yet says what it is, and whether a copy in transformers' format would do."""

import json
from pathlib import Path

import pytest
from transformers import ChameleonConfig, Emu3Config, JanusConfig

from unimodal.model_folder.find import find_model
from unimodal.released import RELEASES, find_release
from unimodal.tokenizers import pretrained
from unimodal.tokenizers.pretrained.base import check_kind

# what the config.json of each release holds, as far as it tells one from another → name, what a user has to do
CONFIGS = {
    "janus-pro": (
        {"model_type": "multi_modality", "architectures": ["MultiModalityCausalLM"]},
        "Janus or Janus-Pro", "convert_checkpoint.py janus deepseek-community/Janus-Pro-1B DIR",
    ),
    "emu3": (
        {"model_type": "Emu3", "architectures": ["Emu3ForCausalLM"], "vocab_size": 184622},
        "Emu3", "convert_checkpoint.py emu3 Emu3-community/Emu3-Gen-hf DIR",
    ),
    "emu3.5": (
        {"model_type": "Emu3", "architectures": ["Emu3ForCausalLM"], "vocab_size": 282926}, "Emu3.5", "(IBQ,",
    ),
    "show-o2": ({"_class_name": "Showo2Qwen2_5", "_diffusers_version": "0.31.0"}, "Show-o2", "would not do"),
    "bagel": (
        {"model_type": "bagel", "architectures": ["BagelForConditionalGeneration"], "llm_config": {}},
        "BAGEL", "would not do",
    ),
    "qwen2.5-omni": ({"model_type": "qwen2_5_omni", "architectures": ["Qwen2_5OmniModel"]}, "Qwen-Omni", "talker"),
    "qwen3-omni": ({"model_type": "qwen3_omni_moe"}, "Qwen-Omni", "talker"),
    "liquid": (
        {"model_type": "gemma", "architectures": ["GemmaForCausalLM"], "vocab_size": 264192},
        "Liquid", "no image tokenizer",
    ),
    "lumina-mgpt": (
        {"model_type": "chameleon", "architectures": ["ChameleonXLLMXForConditionalGeneration"]},
        "Lumina-mGPT", "row marks",
    ),
}  # fmt: skip
HUB_IDS = {
    "deepseek-ai/Janus-Pro-7B": "Janus or Janus-Pro", "BAAI/Emu3-Gen": "Emu3", "BAAI/Emu3.5-Image": "Emu3.5",
    "showlab/show-o2-7B": "Show-o2", "ByteDance-Seed/BAGEL-7B-MoT": "BAGEL", "Qwen/Qwen2.5-Omni-7B": "Qwen-Omni",
    "Junfeng5/Liquid_V1_7B": "Liquid", "Alpha-VLLM/Lumina-mGPT-7B-768": "Lumina-mGPT",
}  # fmt: skip


def save_config(folder: Path, config: dict[str, object]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.mark.parametrize("release", CONFIGS)
def test_a_folder_says_what_it_is_and_what_would_do(tmp_path: Path, release: str) -> None:
    config, name, fix = CONFIGS[release]
    folder = save_config(tmp_path / "model", config)
    with pytest.raises(ValueError, match="is ") as error:
        find_model(folder)
    line = str(error.value)
    assert f"is {name}" in line and fix in line and "\n" not in line
    with pytest.raises(ValueError, match="needs one of type mimi") as error:
        check_kind(folder, ("mimi",), "Mimi")
    assert fix in str(error.value)


@pytest.mark.parametrize("hub_id", HUB_IDS)
def test_a_hub_id_is_told_before_anything_is_downloaded(hub_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> Path:
        raise AssertionError("it was downloaded")

    monkeypatch.setattr("unimodal.model_folder.find.download_folder", refuse)
    monkeypatch.setattr("unimodal.tokenizers.pretrained.checkpoint.download_folder", refuse)
    for find in (find_model, pretrained.find):
        with pytest.raises(ValueError, match=f"{hub_id} is {HUB_IDS[hub_id]}"):
            find(hub_id)


@pytest.mark.parametrize("config", [Emu3Config, ChameleonConfig, JanusConfig])
def test_a_checkpoint_of_transformers_names_the_command(tmp_path: Path, config: type) -> None:
    config().save_pretrained(tmp_path / "model")
    kind = config.model_type
    with pytest.raises(ValueError, match=f"tools/convert_checkpoint.py {kind} {tmp_path / 'model'} DIR"):
        find_model(tmp_path / "model")


def test_every_release_is_tried_and_other_models_are_none(tmp_path: Path) -> None:
    tried = {name for _, name, _ in CONFIGS.values()} | {"Emu3", "Chameleon", "Janus"}
    assert tried == {release.name for release in RELEASES} and set(HUB_IDS.values()) < tried
    for number, config in enumerate(({"model_type": "llama"}, {"model_type": "gemma", "vocab_size": 256000}, {})):
        assert find_release(save_config(tmp_path / str(number), config)) is None
    assert (
        find_release("HuggingFaceTB/SmolLM2-135M") is None and find_release("deepseek-community/Janus-Pro-1B") is None
    )


def test_bagel_is_told_by_its_files(tmp_path: Path) -> None:
    for name in ("llm_config.json", "vit_config.json", "ae.safetensors"):
        (tmp_path / name).write_text("{}")
    found = find_release(tmp_path)
    assert found is not None and found.name == "BAGEL"
