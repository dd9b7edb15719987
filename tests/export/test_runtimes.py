"""An ONNX file gives the embeddings of the transformer from which it was written."""

import importlib.util

import pytest

from rqa_ray.export.runtimes import ONNX_FILE, RUNTIMES, Exported, open_onnx, write_onnx
from rqa_ray.retriever.embedder import Embedder
from tests.models import small_encoder

TEXTS = ["short", "a longer text about whales, of which there are 12", ""]


@pytest.mark.skipif(
    not all(importlib.util.find_spec(module) for module in RUNTIMES["onnx"].modules),
    reason="needs onnx, onnxscript and onnxruntime",
)
@pytest.mark.parametrize("kind", ["modernbert", "qwen3"])
def test_windows_and_causal_attention_come_out_as_in_the_packed_forward_pass(kind, tmp_path):
    encoder = small_encoder(tmp_path / "model", kind).eval()
    expected, config = Embedder(encoder).passages(TEXTS), encoder.transformer.config
    write_onnx(encoder, tmp_path)
    encoder.model[0].model, encoder.can_pack = Exported(open_onnx(tmp_path / ONNX_FILE), config), False
    assert Embedder(encoder).passages(TEXTS).numpy() == pytest.approx(expected.numpy(), abs=1e-5)
