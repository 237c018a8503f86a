"""The tokenizer files of a model folder, so that `AutoTokenizer` alone reads and writes what `Template` does.

`tokenizer.json` holds the text rows and, as special added tokens at their own rows, every control and media token;
`chat_template.jinja` reproduces `Template.render` for all documents. A media part gives its integer codes,

    {"role": "user", "content": [{"type": "text", "text": "what is this?"}, {"type": "image", "codes": [17, 4003, …]}]}

and the template spells them; without codes it writes an empty span, the placeholder for a processor to fill.

Text that spells a control or media token: transformers cannot tell the template's own tokens from those in a message
unless it is called as `apply_chat_template(messages, sanitize_control_tokens=True)`. Then every such string of a user
is encoded as plain text, while codes, which are integers, still become media. Texts are never glued together without
a space, so that two harmless parts cannot make one token. Always pass it for text that you did not write.

Legend: N code steps, G groups.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from unimodal.files import write_text_atomically
from unimodal.text.tokenizer import CONFIG_FILE, TOKENIZER_FILE, AddedToken, TextTokenizer
from unimodal.vocabulary import ROLES, Block, SpanLayout, Vocabulary
from unimodal.vocabulary.patterns import CodePattern

TEMPLATE_FILE = "chat_template.jinja"


def save_hub_tokenizer(
    folder: str | Path, vocabulary: Vocabulary, text: TextTokenizer, model_max_length: int | None = None
) -> None:
    """Writes `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja` to `folder`.

    Text rows between the tokenizer's own and `vocabulary.text_size` (padded rows of a base model) become
    `<|unused_00000|>` tokens. Raises ValueError if a token would not get its row.
    """
    folder = Path(folder)
    if text.size > vocabulary.text_size:
        raise ValueError(f"the text tokenizer has {text.size} rows but the vocabulary only {vocabulary.text_size}")
    data = text.data
    taken = {token["content"] for token in data["added_tokens"]} | set(Tokenizer.from_str(json.dumps(data)).get_vocab())
    strings = [
        f"<|unused_{row:05d}|>" for row in range(text.size, vocabulary.text_size)
    ] + vocabulary.list_token_strings()
    clash = next((string for string in strings if string in taken), None)
    if clash is not None:
        raise ValueError(f"the base tokenizer already has a token {clash}; rename it there or choose another base")
    data["added_tokens"] += [
        AddedToken(
            id=row, content=string, single_word=False, lstrip=False, rstrip=False, normalized=False, special=True
        )
        for row, string in enumerate(strings, start=text.size)
    ]
    serial = json.dumps(data, ensure_ascii=False)
    loaded = Tokenizer.from_str(serial)
    for row, string in enumerate(strings, start=text.size):
        if loaded.token_to_id(string) != row:
            raise ValueError(f"{string} would get row {loaded.token_to_id(string)} instead of {row}: the base has gaps")
    config: dict[str, str | bool | int] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "padding_side": "left",
        "bos_token": "<|bos|>",
        "eos_token": "<|end_of_turn|>",
        "pad_token": "<|pad|>",
    }
    if model_max_length is not None:
        config["model_max_length"] = model_max_length
    write_text_atomically(folder / TOKENIZER_FILE, serial + "\n")
    write_text_atomically(folder / CONFIG_FILE, json.dumps(config, indent=2) + "\n")
    write_text_atomically(folder / TEMPLATE_FILE, write_chat_template(vocabulary))


def write_chat_template(vocabulary: Vocabulary) -> str:
    """The Jinja text of the template. Its tags strip the white space around them, so line breaks are never written."""
    media = "".join(
        f"    {{%- elif part['type'] == '{layout.modality}' -%}}\n{_spell_span(vocabulary, layout)}"
        for layout in vocabulary.layouts
    )
    roles = "".join(
        f"  {{%- {'if' if index == 0 else 'elif'} message['role'] == '{role}' -%}}\n    {{{{- '<|{role}|>' -}}}}\n"
        for index, role in enumerate(ROLES)
    )
    return f"""\
{{%- macro body(content) -%}}
  {{%- if content is string -%}}
    {{%- if content -%}}
      {{{{- ' ' + content -}}}}
    {{%- endif -%}}
  {{%- else -%}}
    {{%- for part in content -%}}
    {{%- if part['type'] == 'text' -%}}
      {{%- if part['text'] -%}}
        {{{{- ' ' + part['text'] -}}}}
      {{%- endif -%}}
{media}    {{%- else -%}}
      {{{{- raise_exception('unknown part type; use text{"".join(f", {name}" for name in vocabulary.media)}') -}}}}
    {{%- endif -%}}
    {{%- endfor -%}}
  {{%- endif -%}}
{{%- endmacro -%}}
{{{{- '<|bos|>' -}}}}
{{%- for message in messages -%}}
{roles}  {{%- else -%}}
    {{{{- raise_exception('unknown role; use {", ".join(ROLES)}') -}}}}
  {{%- endif -%}}
  {{%- if message['role'] == 'assistant' -%}}
    {{%- generation -%}}
      {{{{- body(message['content']) + '<|end_of_turn|>' -}}}}
    {{%- endgeneration -%}}
  {{%- else -%}}
    {{{{- body(message['content']) + '<|end_of_turn|>' -}}}}
  {{%- endif -%}}
{{%- endfor -%}}
{{%- if add_generation_prompt -%}}
  {{{{- '<|assistant|>' -}}}}
{{%- endif -%}}
"""


def _spell_pattern(pattern: CodePattern, blocks: Sequence[Block], marked: bool) -> list[str]:
    """The lines that spell a span's codes in the order of its pattern. marked: with a mark behind the last step."""

    def spell(group: int, code: str) -> str:
        block = blocks[group]
        return f"{{{{- '<|{block.label}_%0{block.digits}d|>' | format({code}[{group}]) -}}}}"

    mark = ["  {{- '<|frame|>' -}}"] if marked else []
    if pattern.kind == "coarse_first":
        halves = range(pattern.coarse), range(pattern.coarse, len(blocks))
        first, second = (
            [
                "  {%- for code in part['codes'] -%}",
                *(f"    {spell(group, 'code')}" for group in half),
                "  {%- endfor -%}",
            ]
            for half in halves
        )
        return [*first, *mark, *second]
    lines = ["  {%- set count = part['codes'] | length -%}",
             f"  {{%- for time in range(count + {max(1, *pattern.delays)}) -%}}"]  # fmt: skip
    for group, delay in enumerate(pattern.delays):
        code = spell(group, f"part['codes'][time - {delay}]")
        lines += [f"    {{%- if {delay} <= time < count + {delay} -%}}", f"      {code}"]
        if group == pattern.leader and mark:
            lines += ["    {%- elif time == count -%}", f"    {mark[0]}"]
        lines.append("    {%- endif -%}")
    return [*lines, "  {%- endfor -%}"]


def _spell_span(vocabulary: Vocabulary, layout: SpanLayout) -> str:
    """The lines that spell one span from `part['codes']`, integers [N] or [N, G]."""
    modality = layout.modality
    lines = [f"{{{{- '<|{modality}_start|>' -}}}}", "{%- if part['codes'] -%}"]
    counts = [segment.count for segment in layout.segments]
    free = layout.open_segment
    for index, segment in enumerate(layout.segments):
        begin = sum(count or 0 for count in counts[:index])
        tail = sum(count or 0 for count in counts[index + 1 :])
        if free is None or index < free:
            part = f"[{begin}:{begin + (segment.count or 0)}]"
        elif index == free:
            part = f"[{begin}:-{tail}]" if tail else f"[{begin}:]"
        else:
            part = f"[-{tail + (segment.count or 0)}:-{tail}]" if tail else f"[-{segment.count}:]"
        if index and segment.mark:
            lines.append("  {{- '<|frame|>' -}}")
        blocks = vocabulary.group_blocks(segment.block)
        if layout.pattern is not None:
            lines += _spell_pattern(layout.pattern, blocks, marked=segment.count is None)
            continue
        codes = ["code"] if len(blocks) == 1 else [f"code[{block.group}]" for block in blocks]
        spelled = " ~ ".join(
            f"'<|{block.label}_%0{block.digits}d|>' | format({code})" for block, code in zip(blocks, codes, strict=True)
        )
        lines += [f"  {{%- for code in part['codes']{part} -%}}", f"    {{{{- {spelled} -}}}}", "  {%- endfor -%}"]
    lines += ["{%- endif -%}", f"{{{{- '<|{modality}_end|>' -}}}}"]
    return "".join(f"      {line}\n" for line in lines)
