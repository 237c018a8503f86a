"""Random Emu3, Chameleon and Janus checkpoints as transformers saves them, small, with text tokenizers whose special
tokens are those of the released ones. Each function writes a folder and gives (model, processor)."""

import json
from pathlib import Path
from typing import Any

import torch

from tests import tiny_networks

SENTENCES = [
    "You are a helpful assistant. USER: Please describe the image. ASSISTANT: a red apple on the table",
    "What is in the picture? It is a cat that sits under a tree.", "draw a blue car, and a house with a garden",
] * 4  # fmt: skip
SIZES = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 700, "rms_norm_eps": 1e-5,
}  # fmt: skip
NUM_CODES = 64
EMU3_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def byte_bpe(specials: list[str], first: bool, bos: str | None = None) -> Any:
    """A byte-level BPE with special tokens in front of its pieces or behind them; `bos` is put before every text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=380 + len(specials) * first,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=specials if first else [],
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    if not first:
        tokenizer.add_special_tokens(specials)
    if bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return tokenizer


def fast(tokenizer: Any, **tokens: Any) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **tokens)


def finished(model: Any, processor: Any, folder: Path, seed: int = 0) -> Any:
    """Weights that prefer some tokens clearly, so that greedy ids do not hang on the last bit; then saved."""
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.dim() >= 2 and "vqmodel" not in name and tensor.is_floating_point():
                fan_in = 1 if "embed" in name else tensor[0].numel()
                tensor.copy_(torch.randn(tensor.shape, generator=noise) * (1.2 / fan_in**0.5))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model.eval(), processor


def emu3(folder: Path) -> Any:
    from transformers import Emu3Config, Emu3ForConditionalGeneration, Emu3Processor
    from transformers.models.emu3.image_processing_emu3 import Emu3ImageProcessor

    specials = ["<|endoftext|>", *[f"<|extra_{number}|>" for number in range(198, 206)]]
    specials += ["<image>", "<|image token|>", "<|image start|>", "<|image end|>"]
    specials += [f"<|visual token {code:06d}|>" for code in range(NUM_CODES)]
    tokenizer = fast(
        byte_bpe(specials, first=False),
        bos_token="<|extra_203|>", eos_token="<|extra_204|>", pad_token="<|endoftext|>",
        extra_special_tokens={
            "image_token": "<image>", "boi_token": "<|image start|>", "eoi_token": "<|image end|>",
            "image_wrapper_token": "<|image token|>", "eof_token": "<|extra_201|>",
        },
    )  # fmt: skip
    row = tokenizer.convert_tokens_to_ids
    network = tiny_networks.emu3_vq(channel_multiplier=[1, 1, 1, 1], attn_resolutions=[3])
    config = Emu3Config(
        vq_config=network.config.to_dict(),
        text_config={
            **SIZES, "vocab_size": len(tokenizer) + 5, "attention_dropout": 0.0, "pad_token_id": row("<|endoftext|>"),
            "bos_token_id": row("<|extra_203|>"), "eos_token_id": row("<|extra_204|>"),
            "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
        },
        vocabulary_map=tokenizer.get_vocab(),
    )  # fmt: skip
    model = Emu3ForConditionalGeneration(config)
    model.model.vqmodel.load_state_dict(network.state_dict())
    images = Emu3ImageProcessor(min_pixels=32 * 32, max_pixels=48 * 48, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    return finished(model, Emu3Processor(images, tokenizer, chat_template=EMU3_TEMPLATE), folder)


def chameleon(folder: Path) -> Any:
    from transformers import ChameleonConfig, ChameleonForConditionalGeneration, ChameleonProcessor
    from transformers.models.chameleon.image_processing_pil_chameleon import ChameleonImageProcessorPil

    names = sorted(f"IMGIMG{''.join(chr(ord('A') + int(digit)) for digit in str(code))}Z" for code in range(NUM_CODES))
    specials = ["<s>", "<pad>", "</s>", "<unk>", *names, "<eoss>", "<racm3:break>"]
    specials += [f"<reserved0870{number}>" for number in range(3, 7)] + ["<image>"]
    raw = byte_bpe(specials, first=True, bos="<s>")
    tokenizer = fast(
        raw, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>", sep_token="<reserved08706>"
    )
    network = tiny_networks.chameleon_vq(channel_multiplier=[1, 2, 2], resolution=32, attn_resolutions=[])
    config = ChameleonConfig(
        **SIZES, vocab_size=len(tokenizer) + 3, vq_config=network.config.to_dict(),
        vocabulary_map=tokenizer.get_vocab(), bos_token_id=0, eos_token_id=2, pad_token_id=1,
    )  # fmt: skip
    model = ChameleonForConditionalGeneration(config)
    model.model.vqmodel.load_state_dict(network.state_dict())
    images = ChameleonImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    made = finished(model, ChameleonProcessor(images, tokenizer, image_seq_length=64), folder)
    path = folder / "tokenizer.json"  # the release has its image tokens in the model's table alone
    data = json.loads(path.read_text())
    data["added_tokens"] = [token for token in data["added_tokens"] if not token["content"].startswith("IMGIMG")]
    path.write_text(json.dumps(data))
    return made


JANUS_TEMPLATE = (  # as the release's own: a picture has a line break on each side that is not an end of its turn
    "{%for message in messages%}{%if message['role']=='user'%}{{'<|User|>: '}}{%else%}{{'<|Assistant|>: '}}{%endif%}"
    "{%for content in message['content']%}{%if content['type']=='text'%}{{content['text']}}{%else%}"
    "{{('' if loop.first else '\n')+'<image_placeholder>'+('' if loop.last else '\n')}}{%endif%}{%endfor%}"
    "{%if message['role']=='user'%}{{'\n\n'}}{%else%}{{'<｜end▁of▁sentence｜>'}}{%endif%}{%endfor%}"
    "{%if add_generation_prompt%}{{'<|Assistant|>:'}}{%endif%}"
)


def janus(folder: Path) -> Any:
    from transformers import JanusConfig, JanusForConditionalGeneration, JanusProcessor
    from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

    specials = [
        "<｜begin▁of▁sentence｜>",
        "<｜end▁of▁sentence｜>",
        "<｜▁pad▁｜>",
        "<image_placeholder>",
        "<begin_of_image>",
    ]
    specials += ["<end_of_image>", "<|User|>", "<|Assistant|>"]
    tokenizer = fast(
        byte_bpe(specials, first=False, bos=specials[0]),
        bos_token=specials[0], eos_token=specials[1], pad_token=specials[2],
        extra_special_tokens={
            "image_token": "<image_placeholder>", "boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>",
        },
    )  # fmt: skip
    row = tokenizer.convert_tokens_to_ids
    vq = {**tiny_networks.JANUS_VQ, "num_patches": 6, "image_token_embed_dim": 32, "projection_dim": 32}
    network = tiny_networks.janus_vq(**vq)
    config = JanusConfig(
        text_config={
            "model_type": "llama", **SIZES, "vocab_size": len(tokenizer) + 4, "pad_token_id": row(specials[2]),
            "bos_token_id": row(specials[0]), "eos_token_id": row(specials[1]),
        },
        vision_config={
            "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 12, "patch_size": 2,
            "projection_dim": 32, "num_image_tokens": 36,
        },
        vq_config=vq,
        image_token_id=row("<image_placeholder>"),
    )  # fmt: skip
    model = JanusForConditionalGeneration(config)
    model.model.vqmodel.load_state_dict(network.state_dict())
    model.generation_config.update(
        bos_token_id=row(specials[0]), eos_token_id=row(specials[1]), pad_token_id=row(specials[2])
    )  # fmt: skip
    model.generation_config.generation_kwargs = {"boi_token_id": row("<begin_of_image>")}
    images = JanusImageProcessorPil(
        size={"height": 12, "width": 12}, min_size=2, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )  # fmt: skip
    processor = JanusProcessor(
        images, tokenizer, chat_template=JANUS_TEMPLATE, use_default_system_prompt=True, num_image_tokens=36
    )
    return finished(model, processor, folder)
