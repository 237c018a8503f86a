"""What defines the systems that are built on queries: TexTok, Instella, ReToK, KARL, HieraTok, D-AR."""

import pytest
import torch

from tests.campaigns import is_study
from unimodal.tokenizers.codes import Codes
from unimodal.tokenizers.configs.registry import build_tokenizer, read_system
from unimodal.tokenizers.interface import Condition
from unimodal.tokenizers.parts.trunks.llama_blocks import make_rotation
from unimodal.tokenizers.systems.d_ar import DArTokenizer
from unimodal.tokenizers.systems.instella import InstellaTokenizer
from unimodal.tokenizers.systems.karl import ERRORS, KarlConfig, KarlTokenizer, measure_halting
from unimodal.tokenizers.systems.titok import TiTokConfig


def build(name, **changes):
    torch.manual_seed(0)
    return build_tokenizer({**read_system(name).choose_settings(small=True), **changes}).eval()


def test_textok_reads_the_caption_on_both_sides_and_no_padding_of_it():
    tokenizer = build("textok")
    picture, text = torch.rand(2, 3, 32, 32), torch.randn(2, 3, 12)
    one, other = (tokenizer.encode_tokens(picture, Condition(features=features)) for features in (text, text.flip(0)))
    assert not torch.allclose(one, other, atol=1e-4)
    codes = tokenizer.encode(picture, condition=Condition(features=text))
    drawn, flipped = (tokenizer.decode(codes, Condition(features=features)) for features in (text, text.flip(0)))
    assert not torch.allclose(drawn, flipped, atol=1e-5)
    padded = torch.cat([text, torch.randn(2, 2, 12)], 1)
    real = torch.arange(5).expand(2, -1) < 3
    again = tokenizer.encode_tokens(picture, Condition(features=padded, features_mask=real))
    torch.testing.assert_close(again, one, atol=1e-5, rtol=1e-4)


def test_tokens_of_instella_are_bits_each_with_a_row_of_its_own():
    tokenizer = build("instella")
    assert tokenizer.codebook_sizes == (256, 256)
    codes = tokenizer.encode(torch.rand(2, 3, 32, 32))
    rows = tokenizer.quantizer.codebook
    low, both = (tokenizer.quantizer.look_up(torch.tensor([[[ids, 0]]])) for ids in (1, 3))
    torch.testing.assert_close(low[0, 0], rows[0].float())
    torch.testing.assert_close(both[0, 0], rows[0] + rows[1])
    assert tokenizer.decode(codes).shape == (2, 3, 32, 32)
    with pytest.raises(ValueError, match="image_size 36 must be 2 or more whole cells of 8"):
        build("instella", image_size=36)
    settings = read_system("retok").choose_settings(small=True)
    with pytest.raises(ValueError, match="bits take the place of a codebook"):
        TiTokConfig.model_validate({**settings, "bits": [8, 8], "normalize": True})


def test_instella_reads_its_authors_config_and_writes_their_names():
    fields = {"encoder_layers": 2, "encoder_head_dim": 16, "encoder_num_heads": 2, "patch_size": 4, "bae_scale": 32}
    fields |= {"decoder_layers": 2, "decoder_head_dim": 16, "decoder_num_heads": 2, "codebook_size": 20}
    fields |= {"downsample_idx": [0], "upsample_idx": [0], "num_latent_tkns": 6, "axes_dims_rope": [4, 6, 6]}
    config = InstellaTokenizer.read_authors_config(fields)
    assert config.bits == (16, 4) and config.span == 8 and config.image_size == 32
    tokenizer = InstellaTokenizer(config)
    theirs = tokenizer.collect_authors_state()
    assert theirs["quantizer.embed"].shape == (20, 32) and theirs["encoder.down_layers.0.conv.bias"].shape == (32,)
    again = InstellaTokenizer.from_authors({**theirs, "decoder.repa_proj.0.weight": torch.zeros(1)}, config)
    assert again.sha256 == tokenizer.sha256


def test_positions_of_instella_span_pictures_of_any_size_alike():
    """The corners of a picture of another size lie where those of the trained size lie."""
    at_32, at_64 = (make_rotation(1, (size, size), 16.0, (4, 6, 6), torch.device("cpu")) for size in (8, 16))
    for place in (0, -1):
        torch.testing.assert_close(at_32.cos[1:][place], at_64.cos[1:][place])
    assert build("instella").change_picture_size(64).picture_size == (64, 64)


def test_redundant_tokens_of_retok_keep_the_tail_more_often_and_are_no_codes():
    tokenizer, plain = build("retok"), build("retok", redundant=0)
    shares = [each.draw_prefixes(4000).float().mean(0) for each in (plain, tokenizer)]
    torch.testing.assert_close(shares[0], torch.arange(8, 0, -1) / 8, atol=0.04, rtol=0)
    torch.testing.assert_close(shares[1], torch.arange(12, 0, -1) / 12, atol=0.04, rtol=0)
    assert shares[1][7] > 3 * shares[0][7]
    resampler = tokenizer.encoder.resampler
    features = torch.zeros(1, 1, 48)
    start = resampler.start_queries(features) - resampler.positions
    torch.testing.assert_close(start[0, 8:], start[0, 4:8])  # copies of the last ones
    picture = torch.rand(2, 3, 32, 32)
    codes = tokenizer.encode(picture)
    assert codes.ids.shape == (2, 8, 1)
    torch.testing.assert_close(
        tokenizer.reconstruct(picture).decoded.clamp(0, 1), tokenizer.decode(codes), atol=1e-5, rtol=1e-4
    )
    with pytest.raises(ValueError, match="set prefixes too"):
        TiTokConfig.model_validate({**read_system("retok").choose_settings(small=True), "prefixes": "none"})


class KnownErrorTokenizer(KarlTokenizer):
    """KARL whose error is known: the detail of a picture, less what the tokens that are used say of it."""

    def measure_error(self, x, decoded):
        return x.std((2, 3)).mean(1) * self.share_left

    def read_tokens(self, x, error, kept=None):
        if kept is not None:
            self.share_left = 1 - kept.float().mean(1)
        return super().read_tokens(x, error, kept)


@pytest.mark.sweep("tokenizers at work")
@pytest.mark.study
def test_the_halting_count_of_karl_grows_with_detail():
    size = {"width": 32, "num_layers": 1, "num_heads": 2}
    settings = {**read_system("karl").choose_settings(small=True), "image_size": 8, "patch_size": 4, "num_tokens": 6}
    settings |= {"encoder": size, "decoder": size, "wanted_error": 0.1, "threshold": 0.5}
    tokenizer = KnownErrorTokenizer(KarlConfig.model_validate(settings)).train()
    torch.nn.init.normal_(tokenizer.errors)  # they begin alike, and this is a short training
    torch.nn.init.normal_(tokenizer.encoder.embedding.project.weight, std=0.3)
    board = (torch.arange(8)[:, None] + torch.arange(8)) % 2 - 0.5
    contrast = torch.tensor([0.3] * 6 + [1.0] * 6)
    pictures = (0.5 + contrast[:, None, None, None] * board).expand(-1, 3, -1, -1) + 0.05 * torch.randn(12, 3, 8, 8)
    optimizer = torch.optim.AdamW(tokenizer.parameters(), 3e-3)
    for _ in range(600 if is_study() else 100):
        optimizer.zero_grad()
        tokenizer.reconstruct(pictures).loss.backward()
        optimizer.step()
    tokenizer.eval()
    codes = tokenizer.encode(pictures)
    counts = codes.mask.sum(1).float()
    halting = tokenizer.read_tokens(pictures, torch.full((12,), 0.1))[1].sigmoid().mean(1)
    assert halting[:6].mean() > halting[6:].mean() + 0.02, halting
    assert 1 < counts[:6].mean() < counts[6:].mean(), counts
    assert tokenizer.decode(codes).shape == pictures.shape


def test_karl_asks_less_often_for_errors_that_it_has_reached_and_balances_what_is_needed():
    tokenizer = build("karl").train()
    assert {round(error, 3) for error in tokenizer.draw_errors(200).tolist()} == {0.005, 0.01, 0.02, 0.03, 0.04}
    tokenizer.fade_chances(torch.tensor([0.02, 0.3]))
    assert tokenizer.chances[3] < 0.2 < tokenizer.chances[1] and abs(float(tokenizer.chances.sum()) - 1) < 1e-5
    logits, targets = torch.tensor([[-9.0, -9.0, -9.0, 9.0]]), torch.tensor([[0.0, 0, 0, 1]])
    assert measure_halting(logits, targets) < 1e-3
    torch.testing.assert_close(measure_halting(logits, 1 - targets), torch.tensor(18.0), atol=1e-2, rtol=0)
    made = tokenizer.reconstruct(torch.rand(2, 3, 32, 32), generator=torch.Generator().manual_seed(1))
    assert {"halting", "second_error"} <= made.numbers.keys() and made.loss.requires_grad


def test_karl_asks_for_the_least_error_that_is_no_smaller_than_the_wanted_one():
    tokenizer = build("karl")
    vectors = tokenizer.embed_error(torch.tensor([0.0, 0.01, 0.011, 9.0]))[:, 0]
    chosen = [int((tokenizer.errors - vector).abs().sum(1).argmin()) for vector in vectors]
    assert chosen == [0, 1, 2, len(ERRORS) - 1]


def test_coarse_codes_of_hieratok_do_not_hang_on_finer_ones():
    tokenizer = build("hieratok")
    picture = torch.rand(2, 3, 32, 32)
    before = tokenizer.encode_tokens(picture)
    with torch.no_grad():
        tokenizer.encoder_blocks.positions[5:] += torch.randn(16, 48)  # those of the last scale
    after = tokenizer.encode_tokens(picture)
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:], after[:, 5:], atol=1e-3)
    tokens = torch.randn(1, 21, 16)
    drawn = tokenizer.decode_tokens(tokens)
    tokens[:, 0] += 1
    assert not torch.allclose(drawn, tokenizer.decode_tokens(tokens), atol=1e-5)  # the picture hangs on the coarse ones
    with pytest.raises(ValueError, match="must grow to 4"):
        build("hieratok", scales=[1, 2])


def test_the_codes_of_d_ar_draw_step_by_step_and_a_prefix_gives_a_preview():
    tokenizer = build("d-ar")
    for parameter in tokenizer.flow.parameters():  # it begins closed
        torch.nn.init.normal_(parameter, std=0.3)
    for layer in tokenizer.decoder_layers:
        torch.nn.init.ones_(layer.gate1)
    starts = tokenizer.find_window(torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]))
    assert starts.tolist() == [0, 2, 4, 6, 6]
    ids = torch.randint(64, (2, 8, 1))
    later = ids.clone()
    later[:, 4:] = (later[:, 4:] + 7) % 64
    noise = torch.randn(2, 3, 16, 16)
    previews = [tokenizer.decode(Codes.whole(each[:, :4]), noise=noise) for each in (ids, later)]
    whole = [tokenizer.decode(Codes.whole(each), noise=noise) for each in (ids, later)]
    assert torch.equal(*previews) and not torch.allclose(*whole, atol=1e-3)
    mixed = tokenizer.decode(Codes.from_rows([ids[0], ids[1, :5]]), noise=noise)  # the fifth begins a window
    torch.testing.assert_close(mixed, torch.stack([whole[0][0], previews[0][1]]), atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="2 to 8 codes"):
        tokenizer.decode(Codes.whole(ids[:, :1]), noise=noise)
    with pytest.raises(ValueError, match="must be 3 steps of 2 codes"):
        build("d-ar", steps=3)


def test_a_step_of_d_ar_trains_the_codes_up_to_its_window_alone():
    """The authors' config is read, and weights go there and back under their names."""
    tokenizer = build("d-ar").train()
    made = tokenizer.reconstruct(torch.rand(2, 3, 16, 16), generator=torch.Generator().manual_seed(1))
    assert made.features["flow"].shape == (2, 16, 12) and made.decoded.shape == (2, 3, 16, 16)
    fields = {"encoder_dim": 64, "decoder_dim": 64, "num_encoder_layers": 1, "num_decoder_layers": 1, "vq_dim": 4}
    fields |= {"vq_codebook_size": 16, "diff_decoder": {"dim": 64, "cond_dim": 64, "depth": 1, "data_std": 0.6}}
    config = DArTokenizer.read_authors_config({"model": fields})
    assert (config.window, config.steps, config.time_shift) == (32, 8, 1.0)
    other = DArTokenizer(config)
    theirs = {**other.collect_authors_state(), "quantize.codebook_used": torch.zeros(65536)}
    assert DArTokenizer.from_authors(theirs, config).sha256 == other.sha256
    assert "diff_decoder.net.blocks.0.adaLN_modulation.1.weight" in theirs
