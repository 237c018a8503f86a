"""FlexTok: the authors' codes, velocities and samples; the order of its codes; guidance; its way to pictures."""

import pytest
import torch

from unimodal.tokenizers.codes import Codes
from unimodal.tokenizers.configs.registry import build_tokenizer, read_system
from unimodal.tokenizers.parts.heads.flow import sample_flow
from unimodal.tokenizers.parts.kl_vae import KlVae
from unimodal.tokenizers.systems.flextok import FlexTokConfig, FlexTokTokenizer


def read_config(facts):
    """Our settings of the reference file, whose config is a flat list of what its modules were given."""
    config = facts["config"]
    chains = {
        "encoder": {
            "module_dict": {
                "enc_patch_emb": {"patch_sizes": config["patch"], "channels_in": config["latent_channels"]},
                "enc_posemb_module": {"max_sizes": config["posemb_max"]},
                "enc_register_module": {"n_max": config["registers"]},
                "enc_transformer": {
                    "dim": config["dim"], "depth": config["enc_depth"], "head_dim": config["head_dim"]
                },
            }
        },
        "decoder": {
            "module_dict": {
                "dec_transformer": {
                    "dim": config["dim"], "depth": config["dec_depth"], "adaLN_expansion": config["adaLN_expansion"]
                },
                "dec_time_embedder": {
                    "frequency_embedding_size": config["frequency_embedding_size"],
                    "max_timestep": config["max_timestep"],
                },
            }
        },
        "regularizer": {"levels": config["fsq_levels"]},
    }  # fmt: skip
    return FlexTokTokenizer.read_authors_config({"config": chains})


@torch.no_grad()
def test_it_gives_the_authors_codes_velocities_and_samples(open_reference):
    reference = open_reference("visual/flextok")
    tokenizer = FlexTokTokenizer.from_authors(reference.weights, read_config(reference.facts))
    codes = tokenizer.encode(reference["input"])
    values = tokenizer.quantizer.look_up(codes.ids)
    reference.check_close("latents", tokenizer.encoder(reference["input"]))
    reference.check_equal("codes", codes.ids[..., 0])
    reference.check_close("quantized", values)
    noise, time = reference["noise"], reference["timesteps"]
    kept = torch.arange(8) < torch.tensor([[3], [5]])
    everything = torch.ones(2, dtype=torch.bool)
    reference.check_close("velocity_full", tokenizer.decoder(noise, time, values))
    reference.check_close("velocity_keep_3_5", tokenizer.decoder(noise, time, values, kept))
    reference.check_close("velocity_null", tokenizer.decoder(noise, time, values, null=everything))
    reference.check_close("decoded", tokenizer.decode(codes, noise=noise, steps=3, guidance=1.0))
    prefix = Codes.whole(codes.ids[:, :3])
    reference.check_close("decoded_prefix_3_apg", tokenizer.decode(prefix, noise=noise, steps=3, guidance=3.0))
    kept = torch.arange(8).expand(2, -1) < 3
    reference.check_close("decoded_prefix_3_cfg", tokenizer.sample(values, noise, kept, 3, 3.0, "cfg"))
    written = tokenizer.collect_authors_state()
    assert set(written) == set(reference.weights)
    assert all(torch.equal(written[name], tensor) for name, tensor in reference.weights.items())
    spoilt = {name: tensor for name, tensor in reference.weights.items() if "nullcond" not in name}
    with pytest.raises(ValueError, match="lacks decoder.module_dict.dec_latent_dropout.nullcond"):
        FlexTokTokenizer.from_authors(spoilt, tokenizer.config)


TINY = {"width": 32, "num_layers": 1}


def build(**changes):
    """The small form."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer({**read_system("flextok-d12-d12").choose_settings(small=True), **changes})
    assert isinstance(tokenizer, FlexTokTokenizer)
    for parameter in tokenizer.decoder.parameters():  # what begins closed is opened: every input then counts
        if parameter.requires_grad and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    return tokenizer.eval()


def test_later_registers_do_not_change_earlier_codes():
    tokenizer = build()
    picture = torch.rand(1, 3, 16, 16)
    before = tokenizer.encoder(tokenizer.to_maps(picture))
    with torch.no_grad():
        tokenizer.encoder.registers[5:] += torch.randn(3, 32)
    after = tokenizer.encoder(tokenizer.to_maps(picture))
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:], after[:, 5:], atol=1e-3)


def test_a_prefix_beside_longer_ones_is_decoded_as_it_is_alone_with_its_own_noise():
    tokenizer = build()
    rows = [torch.randint(200, (length,)) for length in (8, 1, 4)]
    codes = Codes.from_rows(rows)
    noise = tokenizer.draw_noise(codes, [1, 2, 3])
    both = tokenizer.decode(codes, noise=noise)
    for index, row in enumerate(rows):
        alone = tokenizer.decode(Codes.from_rows([row]), noise=noise[index : index + 1])
        torch.testing.assert_close(alone[0], both[index], atol=1e-5, rtol=1e-4)
    unguided = tokenizer.decode(codes, noise=noise, guidance=1.0)
    assert not torch.allclose(unguided, both, atol=1e-3)
    assert tokenizer.decode(codes, noise=noise[:, :, :8, :12]).shape == (3, 3, 8, 12)
    with pytest.raises(ValueError, match="1 to 8 codes"):
        tokenizer.decode(Codes.whole(torch.zeros(1, 9, dtype=torch.int64)))


def test_straight_lines_are_walked_exactly_in_any_number_of_steps():
    data, noise = torch.randn(2, 2, 3, 4, 4).unbind(0)
    for steps in (1, 3, 10):
        made = sample_flow(lambda x, time: noise - data, noise, steps)
        torch.testing.assert_close(made, data, atol=1e-5, rtol=1e-5)
    twice = sample_flow(lambda x, time: noise - data, noise, 4, 2.0, lambda x, time: torch.zeros_like(x))
    torch.testing.assert_close(twice, noise - 2 * (noise - data), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="without the condition"):
        sample_flow(lambda x, time: x, noise, 1, 2.0)


@pytest.mark.sweep("tokenizers at work")
def test_a_longer_prefix_is_nearer_once_the_tail_was_dropped_in_training():
    tokenizer = build(image_size=4, largest_grid=(2, 2), num_tokens=2, levels=(8,), encoder=TINY, decoder=TINY)
    levels = torch.randint(8, (64, 2, 1))  # a code says the brightness of one half of a picture
    halves = levels.squeeze(-1).float() / 7
    pictures = halves[:, None, None, :].repeat_interleave(2, 3).expand(-1, 3, 4, -1)
    optimizer = torch.optim.AdamW(tokenizer.train().decoder.parameters(), 5e-3)
    tokenizer.encoder.forward = lambda maps: tokenizer.quantizer.look_up(levels) * 2  # the codes are given
    for _ in range(150):
        optimizer.zero_grad()
        tokenizer.training_loss(pictures)[0].backward()
        optimizer.step()
    tokenizer.eval()
    errors = []
    for length in (1, 2):
        made = tokenizer.decode(
            Codes.whole(tokenizer.quantizer(tokenizer.encoder(pictures)).ids[:, :length]), guidance=1.0
        )
        errors.append((made - pictures).square().mean().item())
    assert errors[1] < 0.8 * errors[0], errors


def test_a_vae_stands_between_pictures_and_maps_under_the_names_of_diffusers():
    vae = {"channels": 4, "width": 8, "num_norm_groups": 4, "scale": 0.5}
    tokenizer = build(image_size=64, vae=vae, channels=4, num_tokens=4, largest_grid=(4, 4))
    picture = torch.rand(1, 3, 64, 64)
    maps = tokenizer.to_maps(picture)
    assert maps.shape == (1, 4, 8, 8) and tokenizer.decode(tokenizer.encode(picture), steps=1).shape == (1, 3, 64, 64)
    written = tokenizer.collect_authors_state()
    again = FlexTokTokenizer.from_authors(written, tokenizer.config)
    assert again.sha256 == tokenizer.sha256
    for name, shape in (
        ("encoder.mid_block.attentions.0.to_q.weight", (32, 32)),
        ("encoder.down_blocks.1.resnets.0.conv_shortcut.weight", (16, 8, 1, 1)),
        ("encoder.down_blocks.0.downsamplers.0.conv.bias", (8,)),
        ("decoder.up_blocks.0.upsamplers.0.conv.weight", (32, 32, 3, 3)),
        ("decoder.up_blocks.3.resnets.2.norm1.weight", (8,)),
        ("decoder.mid_block.resnets.1.conv2.weight", (32, 32, 3, 3)),
        ("decoder.mid_block.attentions.0.to_out.0.bias", (32,)),
        ("quant_conv.weight", (8, 8, 1, 1)),
    ):
        assert tuple(written[f"vae.vae.{name}"].shape) == shape
    assert isinstance(tokenizer.vae, KlVae) and not any(p.requires_grad for p in tokenizer.vae.parameters())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"channels": 4}, "channels is 4 where pixels have 3"),
        ({"medium": "maps", "vae": {"channels": 3}}, "leave vae out"),
        ({"head_width": 12}, "whole heads of head_width 12"),
        ({"image_size": 18}, "within largest_grid"),
    ],
)
def test_settings_that_do_not_fit_are_named(changes, said):
    settings = read_system("flextok-d12-d12").choose_settings(small=True)
    with pytest.raises(ValueError, match=said):
        FlexTokConfig.model_validate({**settings, **changes})


def test_a_config_of_another_system_is_refused():
    with pytest.raises(ValueError, match="not one of FlexTok's"):
        FlexTokTokenizer.read_authors_config({"model": {}})
