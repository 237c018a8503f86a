"""What the tests of objectives of soft prompts have in common."""

from tests.tiny_bases import PADDED
from unimodal.vocabulary import Block, Segment, SpanLayout, Vocabulary


def make_vocabulary():
    """The words of a tiny base, and pictures of four codes."""
    layouts = [SpanLayout("image", [Segment("image", 4)])]
    return Vocabulary.build(PADDED, [Block(name="image", modality="image", size=16)], layouts)
