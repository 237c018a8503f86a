"""SNAC: the authors' outputs from their weights, the lengths of its codes, and noise that is drawn by a seed."""

import math

import pytest
import torch

from unimodal.tokenizers import Codes
from unimodal.tokenizers.configs.facts import count_bits
from unimodal.tokenizers.configs.registry import build_tokenizer, read_system
from unimodal.tokenizers.systems.snac import SnacTokenizer
from unimodal.vocabulary import Block, Segment, SpanLayout, Vocabulary

NAMES = ("audio/snac", "audio/snac_attn")


def load(reference):
    settings = SnacTokenizer.read_authors_config(reference.config)
    return SnacTokenizer.from_authors(reference.weights, settings, reference.name)


def check_streams(reference, name, tokenizer, codes):
    """The codes of each book are the authors'."""
    for level, stream in enumerate(tokenizer.streams.split(codes)):
        reference.check_equal(f"{name}.{level}", stream.ids[..., 0])


@pytest.mark.parametrize("name", NAMES)
def test_weights_of_the_authors_give_their_outputs(name, open_reference):
    reference = open_reference(name)
    tokenizer = load(reference)
    x, ragged = reference["input"], int(reference["ragged_length"])
    codes = tokenizer.encode(x)
    check_streams(reference, "codes", tokenizer, codes)
    check_streams(reference, "codes_ragged", tokenizer, tokenizer.encode(x[..., :ragged]))
    silent = torch.zeros(2, *tokenizer.noise_shape(codes.ids.shape[1]))
    decoded = tokenizer.decode(codes, noise=silent)
    reference.check_close("decoded", decoded)
    both = tokenizer.encode(x, torch.tensor([x.shape[-1], ragged]))
    decoded = tokenizer.decode(both, noise=silent)[1:, :, : reference["decoded_ragged_item1"].shape[-1]]
    reference.check_close("decoded_ragged_item1", decoded)
    with torch.inference_mode():
        values = tokenizer.quantizer.look_up(codes.ids).transpose(1, 2)
        if name == "audio/snac":
            reference.check_close("latents", tokenizer.encoder(x))
            reference.check_close("quantized", values)
        else:
            reference.check_close("quantized_item1", values[1:])


@pytest.mark.parametrize("name", NAMES)
def test_the_noise_of_their_seed_gives_their_sound(name, open_reference):
    """They draw [B, 1, T] for each block in its turn; ours is one row of all blocks."""
    reference = open_reference(name)
    tokenizer = load(reference)
    codes = tokenizer.encode(reference["input"])
    torch.manual_seed(0)
    steps = codes.ids.shape[1] * tokenizer.config.strides[0]
    noise = torch.cat([torch.randn(2, 1, length) for length in tokenizer.decoder.list_noise_lengths(steps)], -1)[:, 0]
    decoded = tokenizer.decode(codes, noise=noise)[:1]
    if name == "audio/snac":
        reference.check_close("decoded_noise_seed0_item0", decoded)
    else:
        reference.check_close("decoded_noise_seed0_item0_first2048", decoded[..., :2048])


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_written_back_as_they_came(name, open_reference):
    reference = open_reference(name)
    tokenizer = load(reference)
    state = tokenizer.collect_authors_state()
    assert state.keys() == reference.weights.keys()
    assert all(torch.equal(state[key], reference.weights[key]) for key in state)
    again = SnacTokenizer.read_authors_config(tokenizer.write_authors_config())
    assert again == SnacTokenizer.read_authors_config(reference.config)


def build(name, small=False):
    with torch.device("cpu" if small else "meta"):
        return build_tokenizer(read_system(name).choose_settings(small=small)).eval()


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("name", "hop", "bits_a_second"), [("snac-24", 512, 984.375), ("snac-32", 384, 1875), ("snac-44", 384, 2583.984)]
)
def test_published_sizes_have_their_bit_rates(name, hop, bits_a_second):
    tokenizer = build(name)
    assert tokenizer.hop == hop and set(tokenizer.codebook_sizes) == {4096}
    assert math.isclose(count_bits(tokenizer), bits_a_second, rel_tol=1e-6)
    if name == "snac-24":
        assert sum(tokenizer.codebook_sizes) == 28_672  # as Orpheus writes it: seven blocks of 4,096


def test_a_second_of_32_khz_has_the_codes_of_their_readme():
    tokenizer = build("snac-32")
    padded = tokenizer.pad_equal(torch.zeros(1, 1, 32000), False).shape[-1]
    frames = padded // tokenizer.samples_per_code
    assert [frames * rate for rate in tokenizer.streams.rates] == [12, 24, 48, 96]


def test_a_coarse_code_changes_all_of_a_frame_and_a_fine_one_its_part():
    tokenizer = build("snac-24", small=True)
    ids = torch.zeros(1, 3, 7, dtype=torch.int64)

    def list_changed(group):
        """The latents that a changed code of the second frame moves."""
        changed = ids.clone()
        changed[0, 1, group] = 1
        with torch.inference_mode():
            moved = tokenizer.quantizer.look_up(changed) - tokenizer.quantizer.look_up(ids)
        return moved.abs().sum(-1)[0].nonzero().flatten().tolist()

    assert list_changed(0) == [4, 5, 6, 7]
    assert list_changed(1) == [4, 5] and list_changed(4) == [6, 7]
    assert [list_changed(group) for group in (2, 3, 5, 6)] == [[4], [5], [6], [7]]


@pytest.mark.parametrize("name", ["snac-24", "snac-32"])
def test_any_number_of_frames_decodes_and_noise_is_that_of_a_seed(name):
    tokenizer = build(name, small=True)
    for frames in (1, 2, 3):
        ids = torch.randint(32, (2, frames, len(tokenizer.codebook_sizes)))
        codes = Codes.whole(ids)
        sound = tokenizer.decode(codes)
        assert sound.shape == (2, 1, frames * tokenizer.samples_per_code)
        assert torch.equal(tokenizer.decode(codes), sound)
        other = tokenizer.decode(codes, noise=tokenizer.draw_noise(codes, [0, 1]))
        assert torch.equal(other[0], sound[0]) and not torch.equal(other[1], sound[1])
    rows = [torch.randint(32, (count, len(tokenizer.codebook_sizes))) for count in (3, 1)]
    together = tokenizer.decode(Codes.from_rows(rows))
    for row, wave in zip(rows, together, strict=True):
        alone = tokenizer.decode(Codes.from_rows([row]))[0]
        torch.testing.assert_close(wave[:, : alone.shape[-1]], alone)


def test_a_frame_has_the_ids_of_orpheus():
    """Seven tokens a frame, the place's block of 4,096 added to each code, behind row 128,266."""
    tokenizer = build("snac-24")
    blocks = [Block(name="audio", modality="audio", group=g, size=s) for g, s in enumerate(tokenizer.codebook_sizes)]
    vocabulary = Vocabulary.build(128_266 - 14, blocks, [SpanLayout("audio", [Segment("audio")])])
    codes = torch.randint(4096, (3, 7), generator=torch.Generator().manual_seed(0))
    rows = vocabulary.encode_span("audio", codes)[1:-1]
    coarse, middle, fine = (
        stream.ids[0, :, 0].tolist() for stream in tokenizer.streams.split(Codes.whole(codes[None]))
    )
    for frame in range(3):
        written = [coarse[frame], middle[2 * frame], *fine[4 * frame : 4 * frame + 2], middle[2 * frame + 1],
                   *fine[4 * frame + 2 : 4 * frame + 4]]  # fmt: skip
        assert rows[7 * frame : 7 * frame + 7] == [128_266 + 4096 * place + code for place, code in enumerate(written)]
