"""Writes a transformer as ONNX or OpenVINO, in fp32 and int8, and runs what was written.

The files have the places that sentence-transformers' own backends expect: `onnx/model.onnx`,
`openvino/openvino_model.xml`. Those backends write such files through Optimum, whose versions do not take the
transformers that this project needs. So torch, onnxruntime, OpenVINO and nncf write the files here.

Shapes: B texts, L tokens, D dimensions.
"""

from __future__ import annotations

import logging
import sys
import threading
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from rqa_ray.corpus_settings import RUNTIME_NAMES
from rqa_ray.errors import InputError, first_line
from rqa_ray.retriever.embedder import MOST_BATCHES_AT_A_TIME
from rqa_ray.retriever.encoder import Encoder

ONNX_FILE, ONNX_INT8_FILE = "onnx/model.onnx", "onnx/model_qint8.onnx"
OPENVINO_FILE, OPENVINO_INT8_FILE = "openvino/openvino_model.xml", "openvino/openvino_model_qint8.xml"
INPUTS, OUTPUT = ("input_ids", "attention_mask"), "last_hidden_state"
PROTOBUF_BYTES = 2**31 - 2**24  # a file of ONNX with more bytes needs its weights in a second file
Run = Callable[[np.ndarray, np.ndarray], np.ndarray]  # ids (B, L) and mask (B, L) to tokens (B, L, D)


@dataclass(frozen=True)
class Runtime:
    """A program that runs transformers, the files that it reads, and the packages that write them."""

    name: str
    files: dict[str, str]  # by the name of the format: the file in a model's folder
    modules: tuple[str, ...]
    write: Callable[[Path], None]  # writes the files into a folder that has the ONNX file
    open: Callable[[Path], Run]


class Exported(nn.Module):
    """Takes the place of the transformer in an encoder; another runtime computes the forward pass."""

    def __init__(self, run: Run, config: Any) -> None:
        super().__init__()
        self.run, self.config = run, config
        self.empty = nn.Parameter(torch.empty(0))  # an encoder asks its parameters for their device

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> BaseModelOutput:
        return BaseModelOutput(torch.from_numpy(self.run(input_ids.numpy(), attention_mask.numpy())))


class _Traced(nn.Module):
    """A transformer with the inputs and the output that the files have."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.transformer(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


def write_onnx(encoder: Encoder, folder: Path) -> None:
    """Writes the transformer of an encoder as ONNX, in fp32.

    Raises:
        InputError: torch cannot trace the transformer.
    """
    import onnx

    transformer = encoder.transformer
    if encoder.can_pack:
        transformer.set_attn_implementation("sdpa")  # the attention over packed texts has no form in ONNX
    example = torch.full((2, 16), encoder.tokenizer.pad_token_id), torch.ones(2, 16, dtype=torch.long)
    any_size = {name: {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC} for name in INPUTS}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it names operators of torchvision, which is not needed
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")
            # The older exporter (dynamo=False) fixes the mask of the example in the file: other texts come out wrong.
            program = torch.onnx.export(
                _Traced(transformer).eval(),
                example,
                input_names=INPUTS,
                output_names=[OUTPUT],
                dynamo=True,
                dynamic_shapes=any_size,
            )
    except Exception as error:  # torch traces code of any kind, which may raise any error
        kind = transformer.config.model_type
        raise InputError(f"the model ({kind}) cannot be written as ONNX: {first_line(error)}") from None
    assert program is not None
    path = folder / ONNX_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    is_large = sum(value.numel() * value.element_size() for value in transformer.parameters()) > PROTOBUF_BYTES
    onnx.save_model(program.model_proto, path, save_as_external_data=is_large, location=f"{path.name}_data")


def quantize_onnx(folder: Path) -> None:
    """Writes the ONNX file again with int8 weights; activations are quantized as they come (dynamic quantization)."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    logging.getLogger().addFilter(lambda record: "pre-processing before quantization" not in record.getMessage())
    quantize_dynamic(folder / ONNX_FILE, folder / ONNX_INT8_FILE, weight_type=QuantType.QInt8, per_channel=True)


def open_onnx(path: Path) -> Run:
    """Opens an ONNX file with onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads_of_one_run()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda ids, mask: session.run([OUTPUT], dict(zip(INPUTS, (ids, mask), strict=True)))[0]


def write_openvino(folder: Path) -> None:
    """Writes the ONNX file for OpenVINO, in fp32, and with int8 weights that have a scale for each channel."""
    # OpenVINO and nncf report their use over the network if they find this package; both do without it
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import nncf
    import openvino

    model = openvino.convert_model(folder / ONNX_FILE)
    (folder / OPENVINO_FILE).parent.mkdir(parents=True, exist_ok=True)
    openvino.save_model(model, folder / OPENVINO_FILE, compress_to_fp16=False)
    nncf.set_log_level(logging.ERROR)
    with redirect_stdout(StringIO()):  # progress bars
        model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)
    openvino.save_model(model, folder / OPENVINO_INT8_FILE, compress_to_fp16=False)


def open_openvino(path: Path) -> Run:
    """Opens an OpenVINO file; OpenVINO computes in bf16 on CPUs that are fast in bf16."""
    import openvino

    options = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "NUM_STREAMS": runs_at_a_time()}
    compiled, own = openvino.compile_model(path, "CPU", options), threading.local()

    def run(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        if not hasattr(own, "request"):  # a request takes one forward pass at a time
            own.request = compiled.create_infer_request()
        return np.array(own.request.infer(dict(zip(INPUTS, (ids, mask), strict=True)))[0])

    return run


def runs_at_a_time() -> int:
    """How many forward passes the embedder computes at a time."""
    return min(torch.get_num_threads(), MOST_BATCHES_AT_A_TIME)


def threads_of_one_run() -> int:
    """How many threads one of these forward passes has."""
    return torch.get_num_threads() // runs_at_a_time()


ONNX, OPENVINO = RUNTIME_NAMES
RUNTIMES = {
    runtime.name: runtime
    for runtime in (
        Runtime(
            ONNX,
            {"onnx": ONNX_FILE, "onnx int8": ONNX_INT8_FILE},
            ("onnx", "onnxscript", "onnxruntime"),
            quantize_onnx,
            open_onnx,
        ),
        Runtime(
            OPENVINO,
            {"openvino": OPENVINO_FILE, "openvino int8": OPENVINO_INT8_FILE},
            ("onnx", "onnxscript", "openvino", "nncf"),
            write_openvino,
            open_openvino,
        ),
    )
}
