"""The GGUF key that keeps codes out of text answers in llama.cpp."""

import json

import numpy as np
import pytest

pytestmark = pytest.mark.sweep("tools at work")


gguf = pytest.importorskip("gguf")

from tools.suppress_in_gguf import KEY, suppress  # noqa: E402


@pytest.fixture
def source(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_token_list([f"<{row}>" for row in range(8)])
    writer.add_tensor("token_embd.weight", np.arange(32, dtype=np.float32).reshape(8, 4))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "model.gguf"


def test_the_rows_of_the_export_stand_in_the_file(source, tmp_path):
    (tmp_path / "generation_config.json").write_text(json.dumps({"suppress_tokens": [3, 5, 6]}))
    assert suppress(tmp_path, source, tmp_path / "out.gguf") == 3
    found = gguf.GGUFReader(tmp_path / "out.gguf")
    field = found.get_field(KEY)
    assert field.contents() == [3, 5, 6]
    assert field.types == [gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.INT32]  # as llama.cpp reads it
    assert np.array_equal(found.tensors[0].data, gguf.GGUFReader(source).tensors[0].data)
    assert found.get_field("tokenizer.ggml.tokens").contents() == [f"<{row}>" for row in range(8)]


@pytest.mark.parametrize(
    ("rows", "error"), [([], "names no suppress_tokens"), ([8], "has 8 tokens, .* a row 8; they are not of one model")]
)
def test_what_does_not_belong_together_is_refused(rows, error, source, tmp_path):
    (tmp_path / "generation_config.json").write_text(json.dumps({"suppress_tokens": rows}))
    with pytest.raises(ValueError, match=error):
        suppress(tmp_path, source, tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()
