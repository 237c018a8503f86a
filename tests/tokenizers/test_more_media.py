"""Further media of one file each: files and codes go both ways, over every code, and a vocabulary has their rows."""

import importlib
import sys

import pytest
import torch

from unimodal.media.limits import MediaLimits
from unimodal.media.registry import MEDIA, FileTarget
from unimodal.tokenizers.codes import Codes
from unimodal.tokenizers.configs.registry import build_tokenizer, read_system
from unimodal.vocabulary import make_media_vocabulary


@pytest.fixture
def voxels(own_registrations):
    return load_plugin("voxels", "voxels")


@pytest.fixture
def drawings(own_registrations):
    return load_plugin("svg_paths", "svg")


def load_plugin(name, medium):
    """The module as a user's first import finds it, also where a test before has registered its medium."""
    place = f"unimodal.tokenizers.more_media.{name}"
    MEDIA.pop(medium, None)
    sys.modules.pop(place, None)
    return importlib.import_module(place)


def draw_shape(side: int, seed: int) -> torch.Tensor:
    """A ball of voxels off the middle, with a hole: float [side, side, side]."""
    generator = torch.Generator().manual_seed(seed)
    middle = side * (0.3 + 0.4 * torch.rand(3, generator=generator))
    places = torch.stack(torch.meshgrid(*[torch.arange(side).float()] * 3, indexing="ij"))
    distance = (places - middle.view(3, 1, 1, 1)).norm(dim=0)
    return ((distance < side / 3) & (distance > side / 8)).float()


@pytest.mark.sweep("tokenizers at work")
def test_coarse_scales_of_a_scene_decode_alone_and_its_classes_are_learned():
    """I²-World's codes within a scene: a small form is trained on a few scenes of half-filled columns."""
    tokenizer = build_tokenizer(read_system("i2-world").choose_settings(small=True))
    scenes = torch.zeros(4, 1, 16, 16, 4)
    for scene, (x, y) in zip(scenes, [(0, 0), (0, 8), (8, 0), (8, 8)], strict=True):
        scene[0, x : x + 8, y : y + 8, :2] = 1
    optimizer = torch.optim.AdamW(tokenizer.train().parameters(), 1e-2)
    first = None
    for _ in range(15):
        optimizer.zero_grad()
        loss, numbers = tokenizer.training_loss(scenes)
        loss.backward()
        optimizer.step()
        first = first or numbers["cross_entropy"]
    assert numbers["cross_entropy"] < 0.7 * first
    codes = tokenizer.eval().encode(scenes)
    assert codes.ids.shape == (4, 2 * 2 + 4 * 4 + 8 * 8, 1)
    whole, coarse = tokenizer.decode(codes), tokenizer.decode(Codes.whole(codes.ids[:, :4]))
    assert whole.shape == coarse.shape == scenes.shape
    later = codes.ids.clone()
    later[:, 4:] = (later[:, 4:] + 1) % 32
    mask = torch.arange(84).expand(4, -1) < 4
    assert torch.equal(tokenizer.decode(Codes(later, mask)), coarse)
    with pytest.raises(ValueError, match="a voxel has one of 2 classes; got 5"):
        tokenizer.encode(scenes * 5)


def test_a_shape_comes_back_from_its_file_its_blocks_and_its_tree(voxels, tmp_path):
    shapes = torch.stack([draw_shape(16, seed) for seed in range(3)])[:, None]
    voxels.save_voxels(shapes[0, 0], tmp_path / "a.binvox", None)
    data = (tmp_path / "a.binvox").read_bytes()
    assert voxels.is_voxels(data[:64])
    assert torch.equal(voxels.load_voxels(data, FileTarget(), MediaLimits()), shapes[0, 0])
    for kind, config in (
        (voxels.BlockTokenizer, voxels.BlockConfig()),
        (voxels.OctreeTokenizer, voxels.OctreeConfig()),
    ):
        tokenizer = kind(config)
        codes = tokenizer.encode(shapes)
        assert torch.equal(tokenizer.decode(codes), shapes)
        tokenizer.save(tmp_path / config.family)
        assert torch.equal(kind.load(tmp_path / config.family).encode(shapes).ids, codes.ids)
        vocabulary = make_media_vocabulary([tokenizer], 300, (), "0" * 64)
        span = vocabulary.encode_span("voxels", codes.row(1)[:, 0].tolist())
        assert list(vocabulary.decode_span(span)[1]) == codes.row(1)[:, 0].tolist()
    assert len(codes.row(0)) < 8**3  # the tree leaves empty space out


def test_every_block_has_a_code_and_every_code_a_block(voxels):
    ids = torch.arange(256).view(256, 1, 1, 1)
    blocks = voxels.unpack_blocks(ids)
    assert torch.equal(voxels.pack_blocks(blocks), ids) and len(blocks.flatten(1).unique(dim=0)) == 256
    tree = voxels.OctreeTokenizer(voxels.OctreeConfig(side=2))
    assert torch.equal(tree.encode(tree.decode(Codes.whole(ids[:, :, 0, 0]))).ids[:, :, 0], ids[:, :, 0, 0])


def test_a_longer_prefix_of_a_tree_is_never_further_from_the_shape(voxels):
    tree = voxels.OctreeTokenizer(voxels.OctreeConfig(side=16))
    shape = draw_shape(16, 5)[None, None]
    row = tree.encode(shape).ids
    before = tree.decode(Codes.whole(row[:, :1]))
    for num in range(2, row.shape[1] + 1, 7):
        made = tree.decode(Codes.whole(row[:, :num]))
        assert (made <= before).all() and (made >= shape).all()
        before = made
    ids = torch.randint(256, (4, 60, 1), generator=torch.Generator().manual_seed(1))  # as a model may write them
    made = tree.decode(Codes.whole(ids))
    assert torch.equal(tree.decode(tree.encode(made)), made)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-2], "but damaged; export it again"),
        (lambda data: data.replace(b"dim 4", b"dim 0"), "has 0 voxels"),
        (lambda data: b"shape" + data, "is no binvox file"),
    ],
)
def test_a_damaged_shape_is_refused_in_one_line(voxels, tmp_path, change, message):
    voxels.save_voxels(draw_shape(4, 0), tmp_path / "a.binvox", None)
    with pytest.raises(ValueError, match=message):
        voxels.load_voxels(change((tmp_path / "a.binvox").read_bytes()), FileTarget(), MediaLimits())


SVG = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 63 63"><path fill="red" d="{}"/>{}</svg>'


def test_every_point_and_command_goes_both_ways(drawings):
    tokenizer = drawings.PathTokenizer(drawings.PathConfig())
    points = torch.arange(4, 4 + 64**2)
    ids = torch.stack([torch.ones_like(points), points], 1).view(1, -1)  # a line to every point
    assert torch.equal(tokenizer.encode(tokenizer.decode(Codes.whole(ids))).ids[..., 0], ids)
    curve = torch.tensor([[0, 10, 2, 11, 12, 13, 1, 14, 3]])
    assert torch.equal(tokenizer.encode(tokenizer.decode(Codes.whole(curve))).ids[..., 0], curve)
    wild = Codes.whole(
        torch.tensor([[99, 2, 11, 12, 0, 10, 98, 3, 1]])
    )  # no command, cut off twice, one point too many
    assert tokenizer.encode(tokenizer.decode(wild)).ids[0, :, 0].tolist() == [0, 10, 3]
    assert tokenizer.code_features("svg").unique(dim=0).shape[0] == tokenizer.codebook_sizes[0]


def test_a_drawing_is_read_with_relative_commands_and_comes_back(drawings, tmp_path):
    data = SVG.format("m1 2 3 4H10v-5c1 1 2 2 3 3zL0 0", "").encode()
    drawing = drawings.load_drawing(data, FileTarget(), MediaLimits())
    assert drawing[:, 0].tolist() == [1, 2, 2, 2, 3, 4, 2]
    assert drawing[:, 5:].tolist() == [[1, 2], [4, 6], [10, 6], [10, 1], [13, 4], [0, 0], [0, 0]]
    drawings.save_drawing(drawing, tmp_path / "a.svg", None)
    again = drawings.load_drawing((tmp_path / "a.svg").read_bytes(), FileTarget(), MediaLimits())
    assert torch.equal(again, drawing) and drawings.is_drawing((tmp_path / "a.svg").read_bytes()[:64])
    tokenizer = drawings.PathTokenizer(drawings.PathConfig())
    two = torch.nn.utils.rnn.pad_sequence([drawing, drawing[:3]], batch_first=True).transpose(1, 2)
    codes = tokenizer.encode(two, torch.tensor([7, 3]))
    assert torch.equal(codes.row(1), tokenizer.encode(drawing[:3].T[None]).row(0))
    assert torch.equal(tokenizer.decode(codes), two) and "svg" in MEDIA


@pytest.mark.parametrize(
    ("svg", "message"),
    [
        (SVG.format("M0 0A1 1 0 0 0 5 5", ""), "commands M, L, H, V, C and Z are read; got 'A'"),
        (SVG.format("M0 0C1 1 2", ""), "cut off after C"),
        (SVG.format("", ""), "holds no path"),
        (SVG.format("M0 0", '<g transform="scale(2)"/>'), "flatten them"),
        ('<svg><path d="M0 0"/></svg>', "says no viewBox"),
    ],
)
def test_what_cannot_be_read_is_named(drawings, svg, message):
    with pytest.raises(ValueError, match=message):
        drawings.load_drawing(svg.encode(), FileTarget(), MediaLimits())


def test_a_drawing_without_a_view_has_its_width_and_height(drawings):
    svg = b'<svg width="126px" height="63"><path d="M126 63"/></svg>'
    assert drawings.load_drawing(svg, FileTarget(), MediaLimits())[0, 5:].tolist() == [63, 63]


def test_what_is_left_out_of_a_drawing_is_told(drawings):
    told: list[str] = []
    svg = SVG.format("M0 0L1 1", "<circle/><rect/>").encode()
    drawings.load_drawing(svg, FileTarget(tell=told.append), MediaLimits())
    assert told and told[0].endswith("left out are circle, rect")
