"""What differs from the recipe where the small forms of all systems are compared (`tools/compare_systems.py`)."""

from __future__ import annotations

from pydantic import JsonValue

Settings = dict[str, JsonValue]

#: beside the squared error of samples, of every system of sounds that learns by what it decodes: mel bands with DAC's
#: weight. With a fifteenth of it the codebooks' own losses outweigh what is heard, and DAC's codes become one
SOUND_LOSSES: Settings = {"mel": 15, "stft": 1}

#: system → settings of the recipe. Small forms of four codecs are of a rate at which no word is heard; those that only
#: encode learn by spelling what is said; a system that reads texts is given whole sounds; books have as many values as
#: those of their like.
CHANGED: dict[str, Settings] = {
    "dac-16": {"tokenizer": {"sample_rate_hz": 16000, "network": {
        "sampling_rate": 16000, "downsampling_ratios": [2, 4, 5, 8], "decoder_hidden_size": 64}}},
    "encodec-24": {"tokenizer": {"sample_rate_hz": 24000, "bandwidth": 1.8, "network": {
        "sampling_rate": 24000, "upsampling_ratios": [8, 5, 4, 2], "target_bandwidths": [0.45, 0.9, 1.8]}}},
    "mimi": {"tokenizer": {"sample_rate_hz": 24000, "network": {
        "sampling_rate": 24000, "upsampling_ratios": [8, 6, 5, 4]}}},
    "moss-audio": {"tokenizer": {
        "sample_rate_hz": 24000,
        "encoder": [{"patch": 60, "width": 32, "num_heads": 2, "num_layers": 1, "inner": 64, "output_width": 16},
                    {"patch": 2, "width": 32, "num_heads": 2, "num_layers": 1, "inner": 64, "output_width": 32}],
        "decoder": [{"patch": 2, "width": 32, "num_heads": 2, "num_layers": 1, "inner": 64, "output_width": 32},
                    {"patch": 60, "width": 32, "num_heads": 2, "num_layers": 1, "inner": 64, "output_width": 60}]}},
    "s3-v1": {"losses": {"spelling": 1}, "crop_s": 4.0, "tokenizer": {"window_frames": 416, "context": 218}},
    "s3-v2": {"losses": {"spelling": 1}, "crop_s": 4.0, "tokenizer": {"window_frames": 416}},
    "tadicodec": {"crop_s": 4.0},
    "higgs-audio-v2": {"tokenizer": {"network": {"codebook_size": 32}}},
    "whisper-bottleneck": {"losses": {"spelling": 1}, "crop_s": 4.0,
                           "tokenizer": {"window_frames": 416, "context": 218}},
    "xcodec": {"tokenizer": {"network": {"codebook_size": 32}}},
}  # fmt: skip
