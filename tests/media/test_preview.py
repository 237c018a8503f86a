import math
import warnings

import pytest
import torch

from unimodal.media.preview import draw_contact_sheet, draw_spectrogram
from unimodal.media.sheet import draw_sheet


def flat(*colour: float, height: int = 10, width: int = 10) -> torch.Tensor:
    return torch.tensor(colour, dtype=torch.float32)[:, None, None].expand(3, height, width)


def test_a_sheet_holds_every_picture_in_reading_order():
    pictures = [flat(i / 10, 0.5, 0.2) for i in range(5)]
    sheet = draw_contact_sheet(pictures, columns=2)
    assert sheet.shape == (3, 3 * 14 + 4, 2 * 14 + 4) and sheet.dtype == torch.float32
    for index, picture in enumerate(pictures):
        top, left = 4 + index // 2 * 14, 4 + index % 2 * 14
        assert (sheet[:, top : top + 10, left : left + 10] - picture).abs().max() < 1 / 255
    assert (sheet[:, :4] == 1).all() and (sheet[:, -14:, -14:] == 1).all()  # margin and the empty cell


def test_pictures_of_different_sizes_and_types_are_centred():
    sheet = draw_contact_sheet([flat(0, 0, 0, height=20, width=8), torch.zeros(3, 4, 12, dtype=torch.uint8)], columns=9)
    assert sheet.shape == (3, 28, 36)
    assert sheet[0, 4:24, 6:14].max() == 0 and sheet[0, 12:16, 20:32].max() == 0
    assert (sheet[0] == 0).sum() == 20 * 8 + 4 * 12


def test_labels_stay_in_their_cells():
    pictures = [flat(1, 1, 1, width=50)] * 3
    plain = draw_contact_sheet(pictures, 3, ["", "", ""])
    for label in ("cat", "a label that is far too long for its picture and needs a cut", "x" * 200):
        sheet = draw_contact_sheet(pictures, 3, ["", label, ""])
        assert sheet.shape == plain.shape == (3, 10 + 28 + 8, 3 * 54 + 4)
        changed = (sheet != plain).any(dim=0).nonzero()  # [P, 2] row and column of the ink
        assert len(changed) > 10
        assert changed[:, 0].min() >= 14 and changed[:, 0].max() < 14 + 28
        assert changed[:, 1].min() >= 58 and changed[:, 1].max() < 58 + 50 + 2
    assert torch.equal(
        draw_contact_sheet(pictures, 3, ["", "Ünïque 🍎", ""]), draw_contact_sheet(pictures, 3, ["", "Unique", ""])
    )


def test_a_spectrogram_shows_a_tone_at_its_height():
    tops = []
    for frequency_hz in (200, 1000, 4000):
        tone = 0.5 * torch.sin(torch.arange(16000) * 2 * math.pi * frequency_hz / 16000)
        image = draw_spectrogram(tone, 16000)
        assert image.shape == (3, 128, 126) and image.min() >= 0 and image.max() <= 1
        brightness = image.sum(dim=0)[:, 10:-10].mean(dim=1)  # [height]
        tops.append(brightness.argmax().item())
        assert brightness.max() > 10 * brightness.median()
    assert tops[0] > tops[1] > tops[2]


def test_a_spectrogram_shows_when():
    sound = torch.zeros(16000)
    sound[8000:] = torch.randn(8000, generator=torch.Generator().manual_seed(0)) * 0.1
    brightness = draw_spectrogram(sound, 16000).mean(dim=(0, 1))
    assert brightness[:55].max() < 0.05 and brightness[72:].min() > 0.3


@pytest.mark.parametrize("sample_rate_hz", [8000, 16000, 44100])
@pytest.mark.parametrize("length", [1, 100, 5000])
def test_short_and_silent_sounds(sample_rate_hz, length):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        silent = draw_spectrogram(torch.zeros(length), sample_rate_hz)
        image = draw_spectrogram(torch.ones(length) * 0.1, sample_rate_hz)
    assert silent.max() < 0.05 and torch.isfinite(image).all() and image.shape == silent.shape


def test_a_long_sound_is_not_wider_than_asked():
    assert draw_spectrogram(torch.rand(400_000), 16000, height=40, max_width=300).shape[1:] <= (40, 300)


def test_bad_requests():
    with pytest.raises(ValueError, match="empty list"):
        draw_contact_sheet([], 2)
    with pytest.raises(ValueError, match="columns=0"):
        draw_contact_sheet([flat(0, 0, 0)], 0)
    with pytest.raises(ValueError, match="2 labels for 1 pictures"):
        draw_contact_sheet([flat(0, 0, 0)], 1, ["a", "b"])
    with pytest.raises(ValueError, match="not numbers"):
        draw_contact_sheet([flat(float("nan"), 0, 0)], 1)
    with pytest.raises(ValueError, match=r"expected a float sound \[T\]"):
        draw_spectrogram(torch.zeros(0), 16000)
    with pytest.raises(ValueError, match="not numbers"):
        draw_spectrogram(torch.tensor([float("inf")]), 16000)


@pytest.mark.parametrize("samples", [1, 2, 128, 129, 1000])
def test_a_sheet_holds_sounds_of_any_length(samples):
    """Half a window is reflected at each end, which a shorter sound cannot be."""
    sheet = draw_sheet([(torch.rand(1, samples), torch.rand(1, samples + 3)), (torch.rand(1, 700), torch.rand(1, 5))])
    assert sheet.shape[0] == 3 and sheet.isfinite().all()


def test_a_sheet_shows_masks_as_pictures():
    mask = torch.zeros(1, 8, 8)
    mask[0, 2:5, 1:7] = 1
    sheet = draw_sheet([(mask, mask * 0.5)], columns=1)
    found = sheet[:, 2:10, 2:10]
    assert torch.equal(found, mask.expand(3, -1, -1)) and float(sheet[:, 12:20, 2:10].max()) == 0.5
