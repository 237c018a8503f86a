"""What a depth decoder learns: a picture by heart, and codes that depend on the codes beside them."""

import numpy as np
import torch

from unimodal.generation.engine import Engine
from unimodal.generation.request import GenerationConfig
from unimodal.generation.sampling import GREEDY
from unimodal.model.build import NanoConfig, build_nano
from unimodal.model.depth_decoder import DepthSettings, add_depth_decoder, find_depth_decoder
from unimodal.objectives.packed import PackedLoss
from unimodal.sequence.packing import pack, stack
from unimodal.sequence.templates.own import Rendered
from unimodal.tuning.loss import make_packed_loss
from unimodal.vocabulary import Block, Segment, SpanLayout, Vocabulary

SIZES = NanoConfig(hidden_size=32, num_layers=1, num_heads=2, num_kv_heads=2, intermediate_size=48, max_positions=32)


def test_a_picture_is_learnt_by_heart_and_a_code_by_the_code_beside_it():
    blocks = [Block(name="image", modality="image", group=g, size=6, layout="summed") for g in range(3)]
    vocabulary = Vocabulary.build(4, blocks, [SpanLayout("image", [Segment("image", 2)])])
    end = vocabulary.get_control_id("<|end_of_turn|>")
    rng = np.random.default_rng(0)
    by_heart = rng.integers(0, 6, (2, 3))

    def draw_chained():  # the first code is any, and settles those beside it
        first = rng.integers(0, 6, (2, 1))
        return (first + np.array([[0, 3, 1]])) % 6

    def make_batch():
        documents = []
        for number in range(16):
            codes = by_heart if number % 2 else draw_chained()
            ids = np.array([1 + number % 2, *vocabulary.encode_span("image", codes), end])
            documents.append(Rendered(ids, ids.copy(), np.zeros(len(ids), np.uint8)).fold(vocabulary.positions))
        return stack(pack(documents, 24, pad_id=0))

    model = build_nano(vocabulary.size, SIZES, pad_id=0, bos_id=3, eos_id=end, seed=0)
    add_depth_decoder(model, vocabulary, DepthSettings(num_layers=1, width=32))
    loss = make_packed_loss(PackedLoss(model, vocabulary), torch.device("cpu"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.03, weight_decay=0.0)
    for step in range(45):
        found = loss(make_batch(), step)
        (found.total / found.weight).backward()
        optimizer.step()
        optimizer.zero_grad()
    sums = {name: total / count for name, (total, count) in found.sums.items()}
    assert sums["loss_image.0"] > 0.4 > 0.1 > max(sums[f"loss_image.{group}"] for group in (1, 2)), sums

    engine = Engine(model.eval(), vocabulary)
    config = GenerationConfig(max_new_tokens=5, force="image", sampling={"image": GREEDY})
    [answer] = engine.generate([[2]], config)
    np.testing.assert_array_equal(vocabulary.decode_span(answer[:-1])[1], by_heart)
    configs = [GenerationConfig(max_new_tokens=5, force="image", seed=seed) for seed in range(24)]
    pictures = [vocabulary.decode_span(ids[:-1])[1] for ids in engine.generate([[1]] * 24, configs)]
    chained = np.concatenate(pictures)
    right = ((chained[:, :1] + np.array([[0, 3, 1]])) % 6 == chained).all(1)
    assert right.mean() > 0.9 and len(set(chained[:, 0])) == 6, "parallel heads would match one in 36"
    depth = find_depth_decoder(model)
    torch.nn.init.zeros_(depth.project_out.weight)  # parallel heads again
    apart = np.concatenate([vocabulary.decode_span(ids[:-1])[1] for ids in engine.generate([[1]] * 24, configs)])
    assert ((apart[:, :1] + np.array([[0, 3, 1]])) % 6 == apart).all(1).mean() < 0.2
