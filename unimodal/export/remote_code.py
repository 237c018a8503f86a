"""The two files of code in an exported folder, for `trust_remote_code=True`: thin classes that call this package.

Without them, and without trust, the folder is a stock causal LM and tokenizer. transformers copies both files into its
module cache and imports them; the work is done by `unimodal.hub_classes.generation` and `.processor`. The import stands
in a `try`, or transformers would offer to `pip install` a package called unimodal.
"""

from __future__ import annotations

MODEL_FILE, PROCESSOR_FILE = "modeling_unimodal.py", "processing_unimodal.py"
MODEL_CLASS, PROCESSOR_CLASS = "UnimodalForMultimodalLM", "UnimodalProcessor"
MODEL_MAP = {"AutoModelForMultimodalLM": f"{MODEL_FILE.removesuffix('.py')}.{MODEL_CLASS}"}
PROCESSOR_MAP = {"AutoProcessor": f"{PROCESSOR_FILE.removesuffix('.py')}.{PROCESSOR_CLASS}"}

_IMPORT = """\
try:
    from unimodal.{module} import {name}
except ModuleNotFoundError as error:
    raise ImportError(
        f"{what} needs the Python package of unimodal, which is missing or too old ({{error}}); "
        "AutoModelForCausalLM and AutoTokenizer work without it"
    ) from None
"""

_MODEL = '''\
"""The stock {architecture} whose `generate` also writes media; the code is in the unimodal package."""

from transformers import {architecture}

{imports}

class {model_class}(MultimodalGeneration, {architecture}):
    """`generate(..., generation_mode="text" | "image" | "audio" | "video")`."""
'''

_PROCESSOR = '''\
"""Media and chats to token ids and back; the code is in the unimodal package."""

{imports}

class {processor_class}(MultimodalProcessor):
    """Reads pictures, sounds and clips by the tokenizers in this folder."""
'''


def make_code_files(architecture: str) -> dict[str, str]:
    """File name → source, for a decoder of the transformers class `architecture`."""
    assert architecture.isidentifier(), architecture
    model = _IMPORT.format(
        module="hub_classes.generation", name="MultimodalGeneration", what="writing media with this model"
    )
    processor = _IMPORT.format(
        module="hub_classes.processor", name="MultimodalProcessor", what="reading media with this model"
    )
    return {
        MODEL_FILE: _MODEL.format(architecture=architecture, model_class=MODEL_CLASS, imports=model),
        PROCESSOR_FILE: _PROCESSOR.format(processor_class=PROCESSOR_CLASS, imports=processor),
    }
