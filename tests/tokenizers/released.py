"""Checkpoints of every row of `PUBLISHED`: the authors' reference files, and small ones where there is none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from tests.tokenizers import (
    test_beats,
    test_cosmos,
    test_flextok,
    test_gigatok,
    test_moss_audio,
    test_moto,
    test_omnitokenizer,
    test_s3,
    test_seed,
    test_snac,
    test_titok,
    test_tokenflow,
    test_unitok,
    test_vqgan,
    test_xqgan,
)
from tests.tokenizers.references import Reference
from unimodal.tokenizers.configs.registry import build_tokenizer, read_system
from unimodal.tokenizers.systems.base import SystemModule
from unimodal.tokenizers.systems.flextok import FlexTokTokenizer
from unimodal.tokenizers.systems.omnitokenizer import OmniImageTokenizer, OmniVideoTokenizer

Open = Callable[[Reference], SystemModule]


def open_titok(reference: Reference) -> SystemModule:
    kind = test_titok.KINDS[reference.name.removeprefix("visual/")]
    return kind.from_authors(reference.weights, test_titok.read_config(kind, reference))


def open_flextok(reference: Reference) -> SystemModule:
    return FlexTokTokenizer.from_authors(reference.weights, test_flextok.read_config(reference.facts))


#: row → its reference file and what opens it as our tokenizer
FILES: dict[str, tuple[str, Open]] = {
    "llamagen_vq": ("llamagen-vq", test_vqgan.open_tokenizer),
    "ibq": ("ibq", test_vqgan.open_tokenizer),
    "open_magvit2": ("open-magvit2-image", test_vqgan.open_tokenizer),
    "wetok": ("wetok", test_vqgan.open_tokenizer),
    "gigatok": ("gigatok", test_gigatok.open_tokenizer),
    "cosmos_image": ("cosmos-di", test_cosmos.load),
    "cosmos_image_latents": ("cosmos-ci", test_cosmos.load),
    "cosmos_video": ("cosmos-dv", test_cosmos.load),
    "omnitokenizer": ("omnitokenizer", lambda reference: test_omnitokenizer.load(reference, OmniImageTokenizer)),
    "omnitokenizer_video": ("omnitokenizer", lambda reference: test_omnitokenizer.load(reference, OmniVideoTokenizer)),
    "imagefolder": ("imagefolder", test_xqgan.load),
    "tokenflow": ("tokenflow", test_tokenflow.load),
    "unitok": ("unitok", test_unitok.load),
    "seed": ("seed", test_seed.load),
    "moto": ("moto-latent-motion", test_moto.load),
    "titok": ("titok-legacy", open_titok),
    "titok_latents": ("titok-vae", open_titok),
    "one_d_piece": ("one-d-piece", open_titok),
    "tatitok": ("tatitok", open_titok),
    "flextok": ("flextok", open_flextok),
    "s3_v1": ("audio/s3tokenizer_v1", test_s3.load),
    "s3_v1_25hz": ("audio/s3tokenizer_v1_25hz", test_s3.load),
    "s3_v2": ("audio/s3tokenizer_v2_25hz", test_s3.load),
    "beats": ("audio/beats_tokenizer", test_beats.load),
    "snac": ("audio/snac", test_snac.load),
    "moss_audio": ("audio/moss_audio_tokenizer", test_moss_audio.load),
}
#: rows without a reference file → a system whose small form stands in
SMALL = {
    "open_magvit2_video": "open-magvit2-video",
    "robustok": "robustok",
    "cosmos_video_latents": "cosmos-cv-4x8x8",
    "tatitok_latents": "tatitok-bl32-vae",
    "vit_vq": "seit",
    "maskgit_vqgan": "maskgit-vqgan",
    "d_ar": "d-ar",
    "instella": "instella",
    "mingtok": "mingtok",
    "uniflow": "uniflow",
    "tadicodec": "tadicodec",
    "uniaudio2_sqcodec": "uniaudio2-sqcodec",
    "uniaudio2_reasoning": "uniaudio2-reasoning",
    "speechtokenizer": "speechtokenizer",
    "dmcodec": "dm-codec",
    "bigcodec": "bigcodec",
    "wavtokenizer": "wavtokenizer-75",
    "vocos_mel": "vocos-mel",
    "vocos_encodec": "vocos-encodec",
}


def build_small(system: str) -> SystemModule:
    """The small form of a published system with random weights."""
    torch.manual_seed(0)
    module = build_tokenizer(read_system(system).choose_settings(small=True))
    assert isinstance(module, SystemModule)
    return module.eval()


def clone_state(tokenizer: SystemModule) -> dict[str, torch.Tensor]:
    """The weights under the authors' names, none of which shares its storage with another."""
    return {name: tensor.detach().clone() for name, tensor in tokenizer.collect_authors_state().items()}


def write_checkpoint(tokenizer: SystemModule, folder: Path) -> Path:
    """The weights under the authors' names as safetensors; returns a file of the settings, apart from them."""
    folder.mkdir()
    save_file(clone_state(tokenizer), folder / "model.safetensors")
    settings = folder.with_name(f"{folder.name}-settings.json")
    settings.write_text(json.dumps(tokenizer.config.model_dump(mode="json")))
    return settings


def script_weights(weights: dict[str, torch.Tensor]) -> torch.jit.ScriptModule:
    """A TorchScript program that holds tensors of these names."""
    root = nn.Module()
    for name, tensor in weights.items():
        *path, last = name.split(".")
        module = root
        for part in path:
            if part not in dict(module.named_children()):
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        module.register_buffer(last, tensor)
    return torch.jit.trace_module(_Empty(root), {"forward": torch.zeros(1)}).root


class _Empty(nn.Module):
    """A forward pass of nothing over a tree of weights."""

    def __init__(self, root: nn.Module):
        super().__init__()
        self.root = root

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1
