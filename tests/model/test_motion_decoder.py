"""The cross-frame decoder against the authors' forward and diffusion, and its loss on packed groups of frames."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from unimodal.corpus.motion_frames import join_frames
from unimodal.model.attention import set_attention
from unimodal.model.motion_decoder import (
    MOTION_FILE,
    CrossFrameDecoder,
    MotionSettings,
    load_motion_decoder,
    make_schedule,
)
from unimodal.objectives.motion import MotionLoss
from unimodal.sequence.packing import pack, stack
from unimodal.sequence.templates.own import Rendered
from unimodal.tuning.loss import read_values, to_tensors

SETTINGS = MotionSettings(past=2, steps=3, width=2, hidden=16, layers=2, heads=2, parts=4)


def make_decoder(width=32, seed=0, **changes):
    torch.manual_seed(seed)
    made = CrossFrameDecoder(SETTINGS.model_copy(update=changes), width).eval()
    with torch.no_grad():
        for parameter in made.parameters():  # the last layer begins at zero
            parameter += torch.randn(parameter.shape) * 0.1
    return made


@torch.no_grad()
def explain(decoder, x, t, z):
    """The authors' forward for one sample: x [T, A], a number t, z [M + 1, D]."""
    state = dict(decoder.named_parameters())

    def linear(name, y):
        return y @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def attend(name, y, other):
        q, kv = linear(f"{name}.query", y), linear(f"{name}.key_value", other)
        heads, size = decoder.settings.heads, y.shape[-1] // decoder.settings.heads
        out = []
        for h in range(heads):
            k, v = (part[:, h * size : (h + 1) * size] for part in kv.chunk(2, -1))
            scores = q[:, h * size : (h + 1) * size] @ k.T / math.sqrt(size)
            out.append(scores.softmax(-1) @ v)
        return linear(f"{name}.out", torch.cat(out, -1))

    freqs = torch.exp(-math.log(10000) * torch.arange(128) / 128)
    time = torch.cat([torch.cos(t * freqs), torch.sin(t * freqs)])
    time = linear("embed_time.2", F.silu(linear("embed_time.0", time)))
    h = torch.cat([time[None], linear("embed_step", x)]) + state["places"]
    pieces = F.gelu(linear("split_newest.0", z[-1])).view(decoder.settings.parts, -1)
    c = torch.cat([linear("embed_past", z[:-1]), linear("embed_newest", pieces)]) + state["chunk_places"]
    norm = lambda y: F.layer_norm(y, y.shape[-1:], eps=1e-6)  # noqa: E731
    for number in range(decoder.settings.layers):
        name = f"blocks.{number}"
        h = h + attend(f"{name}.own", norm(h), norm(h))
        h = h + attend(f"{name}.cross", norm(h), c)
        h = h + linear(f"{name}.mlp.2", F.gelu(linear(f"{name}.mlp.0", norm(h)), approximate="tanh"))
    return linear("out", norm(h))[1:]


def test_forward_loss_and_drawing_are_the_authors():
    decoder, g = make_decoder(), torch.Generator().manual_seed(1)
    x, z = torch.randn(4, 3, 2, generator=g), torch.randn(4, 3, 32, generator=g)
    t = torch.tensor([0, 7, 50, 99])
    expected = torch.stack([explain(decoder, *one) for one in zip(x, t.tolist(), z, strict=True)])
    torch.testing.assert_close(decoder(x, t, z), expected, rtol=1e-4, atol=1e-4)
    # the squared-cosine schedule of improved diffusion
    signal, kept = make_schedule(), 1.0
    for i in range(100):
        bar = [math.cos((s + 0.008) / 1.008 * math.pi / 2) ** 2 for s in (i / 100, (i + 1) / 100)]
        kept *= 1 - min(1 - bar[1] / bar[0], 0.999)
        assert float(signal[i]) == pytest.approx(kept, rel=1e-4, abs=1e-9)
    torch.manual_seed(3)
    losses = decoder.compute_losses(z, x, draws=2)
    torch.manual_seed(3)
    noise, time = torch.randn(8, 3, 2), torch.randint(0, 100, (8,))
    wanted = torch.zeros(4)
    for n in range(8):
        a = float(signal[time[n]])
        noisy = math.sqrt(a) * x[n % 4] + math.sqrt(1 - a) * noise[n]
        wanted[n % 4] += (explain(decoder, noisy, int(time[n]), z[n % 4]) - noise[n]).square().mean() / 2
    torch.testing.assert_close(losses, wanted, rtol=1e-3, atol=1e-4)
    # DDIM without noise of its own, over every fifth step, with guidance
    start = torch.randn(1, 3, 2, generator=g)
    y = start[0]
    for step in range(95, -1, -5):
        given, free = (explain(decoder, y, step, c) for c in (z[0], decoder.absent.detach()))
        e = free + 1.5 * (given - free)
        a, before = signal[step], signal[step - 5] if step else torch.tensor(1.0)
        y = before.sqrt() * (y - (1 - a).sqrt() * e) / a.sqrt() + (1 - before).sqrt() * e
    torch.testing.assert_close(decoder.draw(z[:1], start, passes=20)[0], y, rtol=1e-2, atol=1e-2)


def make_frame(vocabulary, seed):
    g = torch.Generator().manual_seed(seed)
    ids = np.array([1, *vocabulary.encode_span("image", torch.randint(0, 16, (4,), generator=g)), 5 + seed % 3])
    return Rendered(ids, ids.copy(), np.zeros(len(ids), np.uint8))


def make_samples(vocabulary, num=3):
    g = torch.Generator().manual_seed(9)
    return [
        ([make_frame(vocabulary, 10 * n + f) for f in range(3)], torch.randn(3, 2, generator=g).numpy())
        for n in range(num)
    ]


def compute(objective, samples, length=64):
    """The features and steps of packed samples; the batch's tensors, and its values."""
    batch = stack(pack([join_frames(*one) for one in samples], length, 0))
    assert not (batch.labels != -100).any()
    tensors, values = to_tensors(batch), read_values(batch)
    return objective.collect(tensors[0], tensors[2], None, values["values"]), (tensors, values)


def test_every_frame_is_read_alone_and_the_past_gets_no_gradient(make_model, vocabulary):
    model = make_model()
    set_attention(model)
    objective = MotionLoss(model, vocabulary, make_decoder())
    samples = make_samples(vocabulary)
    (features, steps), (tensors, values) = compute(objective, samples)
    order = [int(np.abs(steps.numpy() - one[1]).sum((1, 2)).argmin()) for one in samples]
    for (frames, wanted), at in zip(samples, order, strict=True):
        torch.testing.assert_close(steps[at], torch.from_numpy(wanted))
        for place, frame in enumerate(frames):
            alone = model.get_decoder()(torch.from_numpy(frame.ids)[None], use_cache=False).last_hidden_state[0, -1]
            torch.testing.assert_close(features[at, place], alone, rtol=1e-4, atol=1e-4)
    total, parts = objective(*tensors, **values)
    assert parts["weight"] == 3 and parts["metrics"]["motion"][1] == 3
    total.backward()
    assert all(p.grad is not None for p in objective.decoder.parameters())
    table = model.get_input_embeddings().weight.grad.abs().sum(1)
    newest = {row for frames, _ in samples for row in frames[-1].ids.tolist()}
    past = {row for frames, _ in samples for frame in frames[:-1] for row in frame.ids.tolist()} - newest
    assert past and all(table[row] == 0 for row in past) and table[sorted(newest)].gt(0).all()


def test_it_learns_where_a_thing_moves_from_where_it_was(make_model, vocabulary):
    """The step is the last code minus the one before: one frame cannot tell it, two can."""
    model = make_model()
    set_attention(model)
    g = torch.Generator().manual_seed(0)
    samples = []
    for _ in range(16):
        before, now = torch.randint(0, 4, (2,), generator=g).tolist()
        frames = []
        for code in (before, now):
            ids = np.array([1, *vocabulary.encode_span("image", [code] * 4)])
            frames.append(Rendered(ids, ids.copy(), np.zeros(len(ids), np.uint8)))
        samples.append((frames, np.array([[now - before]], dtype=np.float32) / 2))
    found = {}
    for past in (0, 1):
        torch.manual_seed(0)
        decoder = CrossFrameDecoder(
            MotionSettings(past=past, steps=1, width=1, hidden=32, layers=1, heads=2, parts=2, dropout=0.0), 32
        )
        objective = MotionLoss(model.requires_grad_(False), vocabulary, decoder)
        used = [(frames[-1 - past :], steps) for frames, steps in samples]
        (features, steps), _ = compute(objective, used)
        optimizer = torch.optim.Adam(decoder.parameters(), lr=1e-2)
        for _ in range(150):
            optimizer.zero_grad()
            decoder.compute_losses(features, steps, draws=8).mean().backward()
            optimizer.step()
        noise = torch.randn(8 * len(steps), 1, 1, generator=torch.Generator().manual_seed(5))
        drawn = decoder.eval().draw(features.repeat(8, 1, 1), noise, guidance=1.0).view(8, -1).mean(0)
        found[past] = float((drawn - steps.flatten()).square().mean())
    assert found[1] < 0.5 * found[0]


def test_the_file_comes_back_and_bad_input_is_one_line(make_model, vocabulary, tmp_path):
    decoder = make_decoder()
    decoder.save(tmp_path)
    back = load_motion_decoder(tmp_path)
    x, t, z = torch.randn(2, 3, 2), torch.tensor([3, 60]), torch.randn(2, 3, 32)
    torch.testing.assert_close(back(x, t, z), decoder(x, t, z))
    (tmp_path / MOTION_FILE).write_bytes(b"{}")
    with pytest.raises(ValueError, match="cannot be read"):
        load_motion_decoder(tmp_path)
    with pytest.raises(ValueError, match="it has to divide 100"):
        decoder.draw(z, x, passes=7)
    for wrong, words in (({"heads": 3}, "3 heads do not divide"), ({"parts": 99}, "does not become 99 parts")):
        with pytest.raises(ValueError, match=words):
            make_decoder(**wrong)
    model = make_model()
    with pytest.raises(ValueError, match="states of width 16; the model's have 32"):
        MotionLoss(model, vocabulary, make_decoder(16))
    objective = MotionLoss(model, vocabulary, decoder)
    frames, steps = make_samples(vocabulary, 1)[0]
    for given, words in (((frames[1:], steps), "a sample is 3 frames"), ((frames, steps[:2]), "learnt from 7 values")):
        batch = stack(pack([join_frames(*given)], 64, 0))
        with pytest.raises(ValueError, match=words):
            objective(*to_tensors(batch), **read_values(batch))
