"""Random networks of transformers' own tokenizer classes, small, and with weights that give many different codes."""

from typing import Any

import torch
from torch import nn

import unimodal  # noqa: F401 - torchaudio beside a CPU build of torch, before transformers


def spread(network: nn.Module, seed: int = 0, codebook: float = 1.0) -> Any:
    """Larger random weights, and codebooks that are not empty."""
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if not tensor.is_floating_point() or tensor.dim() < 2:
                continue
            if any(part in name for part in ("codebook", "quantize.embedding", "embed_sum")):
                tensor.copy_(torch.randn(tensor.shape, generator=noise) * codebook)
            elif "original0" in name:  # the gain of weight normalisation
                tensor.fill_(0.8 if "decoder" in name else 1.5)  # sounds that are not clipped all over
            elif "weight" in name:
                fan_in = tensor[0].numel()
                tensor.copy_(
                    torch.randn(tensor.shape, generator=noise) * ((0.8 if "decoder" in name else 1.5) / fan_in**0.5)
                )
    return network.eval()


def encodec(**settings: Any) -> Any:
    from transformers import EncodecConfig, EncodecModel

    sizes = {
        "num_filters": 4, "hidden_size": 16, "codebook_size": 64, "upsampling_ratios": [4, 2, 2], "num_lstm_layers": 1,
        "sampling_rate": 1600, "target_bandwidths": [0.6, 1.2, 4.8],
    }  # fmt: skip
    return spread(EncodecModel(EncodecConfig(**{**sizes, **settings})), codebook=0.3)


def dac() -> Any:
    from transformers import DacConfig, DacModel

    return spread(
        DacModel(
            DacConfig(
                encoder_hidden_size=8, downsampling_ratios=[2, 5], decoder_hidden_size=16, n_codebooks=4,
                codebook_size=32, codebook_dim=4,
            )
        ),
        codebook=0.3,
    )  # fmt: skip


def mimi(**settings: Any) -> Any:
    from transformers import MimiConfig, MimiModel

    sizes = {
        "hidden_size": 16, "num_filters": 4, "upsampling_ratios": [4, 2], "codebook_size": 32, "codebook_dim": 8,
        "vector_quantization_hidden_dimension": 8, "num_quantizers": 6, "upsample_groups": 16, "num_hidden_layers": 2,
        "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2, "sampling_rate": 800,
        "sliding_window": 8,
    }  # fmt: skip
    return spread(MimiModel(MimiConfig(**{**sizes, **settings})))


def xcodec2() -> Any:
    from transformers import Wav2Vec2BertConfig, Xcodec2Config, Xcodec2Model

    semantic = Wav2Vec2BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        feature_projection_input_dim=160,
    )  # fmt: skip
    return spread(
        Xcodec2Model(
            Xcodec2Config(
                hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
                head_dim=16, encoder_hidden_size=1, quantization_dim=64, quantization_levels=[4, 4, 4],
                semantic_model_config=semantic,
            )
        )
    )  # fmt: skip


def neucodec() -> Any:
    from transformers import NeuCodecConfig, NeuCodecModel, Wav2Vec2BertConfig

    semantic = Wav2Vec2BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        feature_projection_input_dim=160,
    )  # fmt: skip
    return spread(
        NeuCodecModel(
            NeuCodecConfig(
                hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
                head_dim=16, encoder_hidden_size=1, quantization_dim=64, quantization_levels=[4, 4, 4],
                semantic_model_config=semantic,
            )
        )
    )  # fmt: skip


SEMANTIC_ACOUSTIC = {"codebook_size": 32, "target_bandwidths": [0.25, 0.5], "sample_rate": 16000}


def make_semantic_acoustic() -> dict[str, Any]:
    """Configs of the two halves: a DAC of 320 samples a code, and a HuBERT of the same rate."""
    from transformers import DacConfig, HubertConfig

    acoustic = DacConfig(
        encoder_hidden_size=4, downsampling_ratios=[8, 8, 5], upsampling_ratios=[8, 8, 5],
        decoder_hidden_size=32, hidden_size=8,
    )  # fmt: skip
    semantic = HubertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, conv_dim=(8, 8, 8),
        conv_stride=(8, 5, 8), conv_kernel=(10, 3, 10), num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    return {"acoustic_model_config": acoustic, "semantic_model_config": semantic}


def xcodec() -> Any:
    from transformers import XcodecConfig, XcodecModel

    return spread(XcodecModel(XcodecConfig(**SEMANTIC_ACOUSTIC, **make_semantic_acoustic())))


def higgs_audio_v2() -> Any:
    from transformers import HiggsAudioV2TokenizerConfig, HiggsAudioV2TokenizerModel

    config = HiggsAudioV2TokenizerConfig(**SEMANTIC_ACOUSTIC, codebook_dim=8, **make_semantic_acoustic())
    return spread(HiggsAudioV2TokenizerModel(config), seed=1)


def emu3_vq(**settings: Any) -> Any:
    from transformers import Emu3VQVAE, Emu3VQVAEConfig

    sizes = {
        "codebook_size": 64, "base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1,
        "attn_resolutions": [1], "hidden_size": 32,
    }  # fmt: skip
    return spread(Emu3VQVAE(Emu3VQVAEConfig(**{**sizes, **settings})))


CHAMELEON_VQ = {
    "embed_dim": 8, "num_embeddings": 64, "latent_channels": 8, "resolution": 32, "base_channels": 32,
    "channel_multiplier": [1, 2], "num_res_blocks": 1, "attn_resolutions": [16],
}  # fmt: skip
JANUS_VQ = {
    "embed_dim": 8, "num_embeddings": 64, "latent_channels": 8, "base_channels": 32, "channel_multiplier": [1, 2],
    "num_res_blocks": 1, "num_patches": 16,
}  # fmt: skip


def chameleon_vq(**settings: Any) -> Any:
    from transformers import ChameleonVQVAEConfig
    from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE

    return spread(ChameleonVQVAE(ChameleonVQVAEConfig(**{**CHAMELEON_VQ, **settings})))


def janus_vq(**settings: Any) -> Any:
    from transformers.models.janus.configuration_janus import JanusVQVAEConfig
    from transformers.models.janus.modeling_janus import JanusVQVAE

    return spread(JanusVQVAE(JanusVQVAEConfig(**{**JANUS_VQ, **settings})))
