"""Frames of high dynamic range (PQ, HLG) to sRGB, as a screen of ordinary brightness would show them.

Transfer functions: SMPTE ST 2084 (PQ), ARIB STD-B67 (HLG), both in ITU-R BT.2100; reference white at 203 cd/m² as in
ITU-R BT.2408; BT.2020 to BT.709 primaries as in ITU-R BT.2087. What is brighter than three quarters of reference white
is bent into the last quarter, so that lights keep their shape.

Shapes: H height, W width; channels are red, green, blue.
"""

from __future__ import annotations

import numpy as np

PQ, HLG = 16, 18  # transfer characteristics as ITU-T H.273 numbers them
WHITE_NITS = 203.0
HLG_PEAK_NITS, HLG_GAMMA = 1000.0, 1.2
KNEE = 0.75
_TO_BT709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], dtype=np.float32
)
_LUMA = np.array([0.2627, 0.6780, 0.0593], dtype=np.float32)  # of BT.2020


def read_pq(signal: np.ndarray) -> np.ndarray:
    """Signal in [0, 1] → light in cd/m², 0 to 10,000."""
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
    power = signal ** (1 / m2)
    return 10_000 * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)


def read_hlg(signal: np.ndarray) -> np.ndarray:
    """Signal [H, W, 3] in [0, 1] → light in cd/m² on a screen of `HLG_PEAK_NITS`."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
    luma = np.maximum(scene @ _LUMA, 1e-6)[..., None]
    return HLG_PEAK_NITS * luma ** (HLG_GAMMA - 1) * scene


def map_tones(frame: np.ndarray, transfer: int) -> np.ndarray:
    """uint16 [H, W, 3] of BT.2020 primaries, with the PQ or HLG transfer function → uint8 [H, W, 3] in sRGB."""
    signal = frame.astype(np.float32) / 65535
    light = (read_pq(signal) if transfer == PQ else read_hlg(signal)) / WHITE_NITS
    linear = np.maximum(light @ _TO_BT709.T, 0)
    brightest = np.maximum(linear.max(axis=-1, keepdims=True), 1e-6)
    bent = np.where(brightest <= KNEE, brightest, 1 - (1 - KNEE) * np.exp(-(brightest - KNEE) / (1 - KNEE)))
    linear = linear * (bent / brightest)  # hue kept: all three channels by one factor
    shown = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return (shown * 255).round().clip(0, 255).astype(np.uint8)
