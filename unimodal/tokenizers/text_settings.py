"""What a tokenizer reads of texts: how many vectors, and which text model gives them."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

#: in place of a text model: a fixed random vector for each word, for trials without one
WORDS = "words"
#: the text model of TA-TiTok's authors
CLIP_TEXT = "openai/clip-vit-large-patch14-336"


class TextSettings(BaseModel):
    """What a network reads beside the picture: up to `length` vectors of `width`, from a frozen text encoder.

    dropout: the share of training items whose text is left out; above 0 the text may be left out in use as well.
    network: that encoder, one of transformers: a folder, a hub id, or `words`; None where whoever calls makes the
    vectors.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    length: int = Field(default=77, ge=1)
    width: int = Field(default=768, ge=1)
    dropout: float = Field(default=0.0, ge=0, le=1)
    network: str | None = None
