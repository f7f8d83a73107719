"""What an engine throws is told on one line, by the engine's name and with what to do."""

import mxnet as mx
import pytest

from pydmobilenet.cli import options
from pydmobilenet.errors import BadFileError, EngineError, of_engine


def thrown(call):
    try:
        call()
    except Exception as error:
        return error
    return None


def unknown_kernel():
    mx.nd.linalg.potrf(mx.nd.array([[-1.0]])).asnumpy()


def no_such_model():
    onnxruntime = pytest.importorskip("onnxruntime")
    onnxruntime.InferenceSession(b"none", providers=["CPUExecutionProvider"])


class FullError(mx.MXNetError):
    pass


FullError.__module__ = "mxnet.base"


@pytest.mark.parametrize(
    ("error", "beginning", "end"),
    [
        (thrown(unknown_kernel), "MXNet has failed: ", "(DNNL_MAX_CPU_ISA=AVX2 or SSE41 may help)"),
        (thrown(no_such_model), "ONNX Runtime has failed: ", ""),
        (
            FullError("Traceback:\n  a\nMXNetError: out of memory"),
            "MXNet has failed: out of memory (a smaller",
            " less)",
        ),
        (MemoryError(), "no memory is left (MemoryError): a smaller batch needs less", ""),
        (mx.MXNetError("a\n  b\n\n"), "MXNet has failed: b (", " may help)"),
    ],
)
def test_an_engine_s_error_is_one_line(error, beginning, end):
    failure = of_engine(error)
    assert isinstance(failure, EngineError)
    assert failure.exit_code == 1
    assert str(failure).startswith(beginning)
    assert str(failure).endswith(end)
    assert "\n" not in str(failure)
    assert len(str(failure)) < 420


@pytest.mark.parametrize("error", [ValueError("x"), BadFileError("x"), KeyError("x"), RuntimeError("x")])
def test_other_errors_are_no_engine_s(error):
    assert of_engine(error) is None


def test_a_command_ends_with_the_line_and_exit_code_1(capsys):
    with pytest.raises(SystemExit) as ended:
        options.exit_with(unknown_kernel, "predict")
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("predict: error: MXNet has failed: ")
