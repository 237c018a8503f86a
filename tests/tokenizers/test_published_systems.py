"""Every published system that comes as a config: its published size is built and counted, its small form codes and
trains."""

import functools

import pytest
import torch

from unimodal.tokenizers.configs.registry import build_tokenizer, count_parameters, list_systems, read_system
from unimodal.tokenizers.interface import LatentTokenizer, MediaTokenizer
from unimodal.tokenizers.parts.quantizers.interface import Quantizer

SYSTEMS = [read_system(name) for name in list_systems()]
PUBLISHED = [system for system in SYSTEMS if system.tokenizer is not None]
COUNTED = [(system, count) for system in SYSTEMS for count in system.parameters]


def describe_published(system):
    """What `make test` sees of the published sizes: one of each family."""
    return {"family": system.tokenizer["family"]}


def describe_small(system):
    """What `make test` sees of the small forms: one of each family and of each kind of quantizer."""
    settings = system.choose_settings(small=True)
    return {"family": settings["family"], "quantizer": str((settings.get("quantizer") or {}).get("kind"))}


@functools.cache
def build_published(name):
    """The published size without storage, once for all that is read of it."""
    with torch.device("meta"):
        return build_tokenizer(read_system(name).choose_settings())


@pytest.mark.sweep
@pytest.mark.parametrize(("system", "count"), COUNTED, ids=lambda value: getattr(value, "name", None))
def test_a_published_size_has_its_published_count(system, count):
    found = count_parameters(build_published(system.name), count)
    if count.digits is None:
        assert found == count.count
    else:
        unit = 10 ** (len(str(count.count)) - count.digits)
        assert round(found / unit) == round(count.count / unit)


@pytest.mark.sweep
@pytest.mark.sliced(by=describe_published)
@pytest.mark.parametrize("system", PUBLISHED, ids=lambda system: system.name)
def test_a_published_size_is_built_without_storage_and_says_its_codes(system):
    tokenizer = build_published(system.name)
    stored = sum(p.numel() for p in tokenizer.parameters() if not p.is_meta)
    assert stored < 2000  # windows that classes of transformers and torchaudio make on the processor, wherever built
    if isinstance(tokenizer, MediaTokenizer):
        assert tokenizer.codebook_sizes and tokenizer.segments


@pytest.mark.sweep
@pytest.mark.sliced(by=describe_small)
@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.name)
def test_a_small_form_has_a_finite_loss_with_a_gradient_and_keeps_its_codes(system, tmp_path):
    torch.manual_seed(0)
    tokenizer = build_tokenizer(system.choose_settings(small=True)).train()
    assert sum(p.numel() for p in tokenizer.parameters()) < 1_000_000
    if not isinstance(tokenizer, MediaTokenizer | LatentTokenizer):
        pytest.skip("reads only")
    assert tokenizer.sample_rate_hz is None or tokenizer.sample_rate_hz >= 1000  # that a file can be read at
    if not list(tokenizer.parameters()):
        pytest.skip("without weights; test_more_media.py has it")
    x = make_media(tokenizer)
    loss, numbers = tokenizer.training_loss(x)
    if not loss.requires_grad:  # it learns by what teaches it alone
        assert tokenizer.taught_by
        loss = tokenizer.reconstruct(x).features["codes"].square().mean()
    loss.backward()
    trained = [p for p in tokenizer.parameters() if p.requires_grad]
    assert torch.isfinite(loss) and numbers and any(p.grad is not None and p.grad.abs().sum() > 0 for p in trained)
    tokenizer.round_to_half().eval()
    tokenizer.save(tmp_path)
    again = type(tokenizer).load(tmp_path)
    assert again.sha256 == tokenizer.sha256
    if isinstance(tokenizer, MediaTokenizer):
        codes = tokenizer.encode(x)
        assert torch.equal(again.encode(x).ids, codes.ids)
        alone = tokenizer.encode(x[1:2])
        differ = (codes.row(1) != alone.row(0)).any(1)
        if bool(differ.any()):  # a code at a tie: a change of the medium by 10⁻⁵ moves it, too
            nudged = [tokenizer.encode(x[1:2] * scale).row(0) for scale in (1 - 1e-5, 1 + 1e-5)]
            moved = torch.stack([(row != alone.row(0)).any(1) for row in nudged]).any(0)
            assert int(differ.sum()) == 1 and bool(moved[differ].all())
        modes = [part.training for part in tokenizer.train().modules()]
        with torch.autocast("cpu", torch.bfloat16):  # as a call amid training
            assert torch.equal(tokenizer.encode(x).ids, codes.ids)
        assert [part.training for part in tokenizer.modules()] == modes
        assert tokenizer.eval().sha256 == again.sha256
        check_ids_under_autocast(tokenizer, x)
        check_features(tokenizer)


def check_features(tokenizer) -> None:
    """A row for each code of each group, or None; None of what is not there."""
    assert tokenizer.code_features("no such block") is None
    for block in dict(tokenizer.segments):
        assert tokenizer.code_features(block, len(tokenizer.group_sizes(block))) is None
        for group, size in enumerate(tokenizer.group_sizes(block)):
            features = tokenizer.code_features(block, group)
            assert features is None or (features.shape[0] == size and features.device.type == "cpu")


def check_ids_under_autocast(tokenizer, x) -> None:
    """Every quantizer gives the ids of float32 under bfloat16's autocast too, of the vectors that it is given."""
    calls = []
    hooks = [
        module.register_forward_hook(lambda *call: calls.append(call))
        for module in tokenizer.modules()
        if isinstance(module, Quantizer)
    ]
    tokenizer.encode(x)
    for hook in hooks:
        hook.remove()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        for quantizer, arguments, found in calls:
            assert torch.equal(quantizer(*arguments).ids, found.ids)


def make_media(tokenizer) -> torch.Tensor:
    """Two random media of the tokenizer's own size."""
    generator = torch.Generator().manual_seed(1)
    size = tokenizer.picture_size or (32, 32)
    if tokenizer.modality == "audio":
        return torch.rand(2, 1, 4000, generator=generator) * 2 - 1
    if tokenizer.modality == "voxels":
        config = tokenizer.config
        return (torch.rand(2, 1, config.side, config.side, config.height, generator=generator) > 0.5).float()
    if tokenizer.modality == "mask":
        return (torch.rand(2, 1, *size, generator=generator) > 0.5).float()
    if tokenizer.modality == "video":
        return torch.rand(2, 3, tokenizer.num_frames or 5, *size, generator=generator)
    return torch.rand(2, 3, *size, generator=generator)
