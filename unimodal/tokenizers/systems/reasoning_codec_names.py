"""How UniAudio 2's authors name the weights and sizes of ReasoningCodec (yangdongchao/UniAudio2).

Their checkpoint may hold the frozen encoders too, and the decoders that only training needs; SQ-Codec's weights are a
file of their own.
"""

from __future__ import annotations

from unimodal.tokenizers.systems.key_map import KeyMap

_FLOW, _THEIR_FLOW = r"flow\.", "cfm_wrapper.estimator."
_BLOCK, _THEIR_BLOCK = _FLOW + r"blocks\.(\d+)\.", _THEIR_FLOW + r"transformer_blocks.\1."
_THOUGHT, _THEIR_THOUGHT = r"(audio_thinking\.encoder_transformers\.\d+)\.", r"\1."

KEY_MAP = KeyMap(
    rules=(
        (_FLOW + r"positions", _THEIR_FLOW + "pos_embed.pe"),
        (_FLOW + r"time\.first\.(.*)", _THEIR_FLOW + r"adaln_single.emb.timestep_embedder.linear_1.\1"),
        (_FLOW + r"time\.second\.(.*)", _THEIR_FLOW + r"adaln_single.emb.timestep_embedder.linear_2.\1"),
        (_FLOW + r"time_to_parts\.(.*)", _THEIR_FLOW + r"adaln_single.linear.\1"),
        (_BLOCK + r"(to_[qkv])\.(.*)", _THEIR_BLOCK + r"attn1.\2.\3"),
        (_BLOCK + r"to_out\.(.*)", _THEIR_BLOCK + r"attn1.to_out.0.\2"),
        (_BLOCK + r"up\.(.*)", _THEIR_BLOCK + r"ff.net.0.proj.\2"),
        (_BLOCK + r"down\.(.*)", _THEIR_BLOCK + r"ff.net.2.\2"),
        (_BLOCK + r"(.*)", _THEIR_BLOCK + r"\2"),
        (_FLOW + r"(.*)", _THEIR_FLOW + r"\1"),
        (_THOUGHT + r"((?:to_qkv|to_out|q_norm|k_norm)\..*)", _THEIR_THOUGHT + r"self_attn.\2"),
        (_THOUGHT + r"attention_scale", _THEIR_THOUGHT + "self_attn_scale.scale"),
        (_THOUGHT + r"mlp_scale", _THEIR_THOUGHT + "ff_scale.scale"),
        (_THOUGHT + r"up\.(.*)", _THEIR_THOUGHT + r"ff.ff.0.proj.\2"),
        (_THOUGHT + r"down\.(.*)", _THEIR_THOUGHT + r"ff.ff.2.\2"),
        (r"(audio_thinking\.reasoning_vq|vq_\w+)\.network\.(.*)", r"\1.\2"),
    ),
    ignored=(
        r"(whisper_encoder|wavlm_encoder|pretrained_model|structure_semantic_decoder|pronunciation_decoder)\..*",
        r"(wavlm_transfer|audio_thinking\.llama_model)\..*",
    ),
)
