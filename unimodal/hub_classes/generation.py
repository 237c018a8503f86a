"""An exported folder inside transformers: `generate` of its `AutoModelForMultimodalLM`. The folder's class mixes it in.

    pipe = pipeline("any-to-any", model=DIR, trust_remote_code=True)
    [made] = pipe([{"role": "user", "content": "Draw a red apple."}], generation_mode="image")
    made["generated_image"].save("apple.png")

The processor of the same folder is `processor.py`.

Shapes: B rows, N tokens of the prompt, M of the answer.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Self, cast

import torch
from torch import Tensor
from transformers import PretrainedConfig

from unimodal.coder.media_coder import MediaCoder
from unimodal.files import HubOptions, download_folder
from unimodal.model.prompt_files import has_soft_prompt, read_soft_prompt
from unimodal.model.soft_prompt import attach_soft_prompt
from unimodal.model.weight_files import PROMPT_FOLDER, check_weight_files, list_weight_files
from unimodal.model_folder.layout import VOCABULARY_FILE
from unimodal.model_folder.settings import read_processor, read_sampling
from unimodal.pipeline import AnswerSettings, Unimodal
from unimodal.pipeline.requests import list_media, prepare_prompt
from unimodal.sequence.document import Document
from unimodal.sequence.templates.own import Template
from unimodal.text.tokenizer import TextTokenizer
from unimodal.vocabulary import Vocabulary, read_vocabulary

GENERATE_OPTIONS = (
    "generation_mode, max_new_tokens, guidance_scale, temperature, top_k, top_p, do_sample, seed, negative_prompt"
)
#: options that transformers and its pipelines add by themselves; the engine has its own
IGNORED = {"pad_token_id", "eos_token_id", "bos_token_id", "use_cache", "generation_config", "return_dict_in_generate"}


def find_folder(name: str | os.PathLike[str], options: Mapping[str, object]) -> Path:
    """The local folder of a model given by folder or hub id; its decoder is not downloaded.

    options: those of `from_pretrained`. Raises ValueError for a folder whose weights may not be opened, and for a
    repository that the hub does not have.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        known = HubOptions.__annotations__
        wanted = {key: value for key, value in options.items() if key in known and value is not None}
        patterns = ["*.json", "*.jinja", "*_tokenizer/*", f"{PROMPT_FOLDER}/*"]
        folder = download_folder(str(name), patterns, "model ", cast(HubOptions, wanted))
    check_weight_files(list_weight_files(folder))
    return folder


class MultimodalGeneration:
    """Mixed into a stock causal LM: `generate` by the engine, grammar and sampling settings of unimodal."""

    #: set by `from_pretrained`
    media_folder: Path
    vocabulary: Vocabulary

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *args: object, **options: object
    ) -> Self | tuple[Self, dict[str, object]]:
        """Loads the decoder as transformers does, and the media of the same folder.

        On a processor, half-precision weights are read in single precision, unless a dtype is named.
        """
        config = options.get("config")
        halves = isinstance(config, PretrainedConfig) and config.dtype == torch.float16
        if halves and options.get("dtype", "auto") in (None, "auto") and not torch.cuda.is_available():
            options["dtype"] = torch.float32  # half precision is slow on a processor, and its answers differ
        model = super().from_pretrained(pretrained_model_name_or_path, *args, **options)  # type: ignore[misc]
        loaded = model[0] if isinstance(model, tuple) else model
        loaded.media_folder = find_folder(pretrained_model_name_or_path, options)
        loaded.vocabulary = read_vocabulary(loaded.media_folder / VOCABULARY_FILE)
        if has_soft_prompt(loaded.media_folder):
            attach_soft_prompt(loaded, read_soft_prompt(loaded.media_folder))
        return model

    @property
    def output_modalities(self) -> tuple[str, ...]:
        """The modalities that the model writes."""
        return ("text", *self.vocabulary.media)

    @property
    def input_modalities(self) -> tuple[str, ...]:
        """The modalities that the model reads, as the any-to-any pipeline is told.

        Without torchvision, pictures and clips are left out: the pipeline would insist on that package, which nothing
        here needs. The model reads them all the same.
        """
        has_torchvision = importlib.util.find_spec("torchvision") is not None
        return tuple(name for name in self.output_modalities if has_torchvision or name not in ("image", "video"))

    @cached_property
    def unimodal(self) -> Unimodal:
        """This decoder as `unimodal.load` gives it."""
        folder = self.media_folder
        template = Template(self.vocabulary, TextTokenizer.load(folder))
        coder = MediaCoder(folder, self.vocabulary, read_processor(folder))
        return Unimodal(folder, self, template, coder, read_sampling(folder))

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        generation_mode: str | None = None,
        max_new_tokens: int | None = None,
        guidance_scale: float | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        do_sample: bool | None = None,
        seed: int | None = None,
        negative_prompt: str | None = None,
        **others: object,
    ) -> Tensor:
        """Prompts [B, N], padded anywhere under `attention_mask`, → the same followed by their answers, [B, N + M].

        generation_mode: the medium that the answer must hold; "text" (the default) for words only, "any" for what the
        model chooses. Sampling and guidance are the model's own unless given; do_sample=False is greedy. seed: by
        default drawn from torch's generator, so that `transformers.set_seed` repeats an answer. Raises ValueError for
        any other option.
        """
        unknown = sorted(name for name in set(others) - IGNORED if others[name] is not None)
        if input_ids is None or unknown:
            raise ValueError(f"generate takes input_ids, attention_mask, {GENERATE_OPTIONS}; not {', '.join(unknown)}")
        model = self.unimodal
        settings = AnswerSettings(
            to=None if generation_mode == "any" else generation_mode or "text",
            seed=int(torch.randint(2**31, ())) if seed is None else seed,
            guidance=guidance_scale,
            temperature=0.0 if do_sample is False else temperature,
            top_k=top_k,
            top_p=top_p,
            tokens=max_new_tokens,
            shorten=True,
            negative=negative_prompt,
        )
        list_media(model, settings)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        prompts = [row[real.bool()].tolist() for row, real in zip(input_ids, mask, strict=True)]
        configs = []
        for index, prompt in enumerate(prompts):
            document, begun = self._split_prompt(prompt)
            own = settings.replace(seed=settings.seed + index)
            configs.append(prepare_prompt(model, document, prompt, own, begun).config)
        answers = model.engine.generate(prompts, configs)
        pad, longest = model.vocabulary.get_control_id("<|pad|>"), max(map(len, answers))
        padded = torch.tensor([answer + [pad] * (longest - len(answer)) for answer in answers])
        return torch.cat([input_ids, padded.to(input_ids)], 1)

    def _split_prompt(self, prompt: Sequence[int]) -> tuple[Document, list[int]]:
        """The document before the turn that is to be answered, and the rows that this turn already holds."""
        document = self.unimodal.template.parse(prompt)
        mark = self.unimodal.vocabulary.get_control_id("<|assistant|>")
        if not document.turns or document.turns[-1].role != "assistant" or mark not in prompt:
            raise ValueError(
                "the prompt does not end in an assistant's turn; render it with add_generation_prompt=True"
            )
        last = len(prompt) - 1 - list(reversed(prompt)).index(mark)
        return Document(document.turns[:-1]), list(prompt[last + 1 :])
