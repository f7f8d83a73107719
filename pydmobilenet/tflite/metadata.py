"""The metadata of a file: its network as JSON, and the class names where MediaPipe and the Task Library look for them.

Their readers want a `TFLITE_METADATA` flatbuffer that names a file of labels, and this file in a ZIP archive behind the
model (https://ai.google.dev/edge/litert/conversion/tensorflow/metadata). The pixels need no normalisation.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence

import flatbuffers
from ai_edge_litert import schema_py_generated as schema

from ..errors import BadFileError
from ..text import encodable

OWN, READERS = "pydmobilenet", "TFLITE_METADATA"
LABELS = "labels.txt"
IDENTIFIER, PARSER = b"M001", "1.0.0"
# Of metadata_schema.fbs: the numbers of fields of its tables, and of a value.
NAME, SUBGRAPHS, MIN_PARSER = 0, 3, 7  # ModelMetadata
INPUTS, OUTPUTS = 2, 3  # SubGraphMetadata
FILES = 6  # TensorMetadata
TYPE, AXIS_LABELS = 2, 2  # AssociatedFile


def dump(properties: Mapping[str, str]) -> dict[str, bytes]:
    """Return the entries for a model with such properties."""
    return {OWN: json.dumps(dict(properties)).encode(), READERS: _for_readers(properties["model"])}


def read(content: bytes) -> dict[str, str]:
    """Return the properties in a file, none in that of others. Raises BadFileError for other content."""
    try:
        model = schema.Model.GetRootAs(content)
        for number in range(model.MetadataLength()):
            if model.Metadata(number).Name() == OWN.encode():
                data = model.Buffers(model.Metadata(number).Buffer()).DataAsNumpy()
                return {key: str(value) for key, value in json.loads(bytes(data)).items()}
    except Exception as error:  # a damaged flatbuffer fails anyhow
        raise BadFileError(f"no TensorFlow Lite file: {type(error).__name__}") from None
    return {}


def with_labels(model: bytes, names: Sequence[str]) -> bytes:
    """Return a model with a ZIP archive of its labels behind it, a line each."""
    file = io.BytesIO(model)
    with zipfile.ZipFile(file, "a") as archive:
        lines = (encodable(" ".join(name.split())) for name in names)
        archive.writestr(zipfile.ZipInfo(LABELS), "".join(f"{line}\n" for line in lines))
    return file.getvalue()


def _for_readers(name: str) -> bytes:
    builder = flatbuffers.Builder()
    labels = _table(builder, 5, {NAME: builder.CreateString(LABELS)}, {TYPE: AXIS_LABELS})
    images = _table(builder, 7, {NAME: builder.CreateString("images")})
    logits = _table(builder, 7, {NAME: builder.CreateString("logits"), FILES: _vector(builder, labels)})
    part = _table(builder, 7, {INPUTS: _vector(builder, images), OUTPUTS: _vector(builder, logits)})
    fields = {NAME: builder.CreateString(name), SUBGRAPHS: _vector(builder, part)}
    builder.Finish(_table(builder, 8, {**fields, MIN_PARSER: builder.CreateString(PARSER)}), IDENTIFIER)
    return bytes(builder.Output())


def _table(builder: flatbuffers.Builder, size: int, offsets: Mapping[int, int], bytes_: Mapping[int, int] = {}) -> int:
    """Write a table of so many fields: `offsets` of what is written already, and values of one byte."""
    builder.StartObject(size)
    for field, offset in offsets.items():
        builder.PrependUOffsetTRelativeSlot(field, offset, 0)
    for field, value in bytes_.items():
        builder.PrependInt8Slot(field, value, 0)
    return builder.EndObject()


def _vector(builder: flatbuffers.Builder, offset: int) -> int:
    builder.StartVector(4, 1, 4)
    builder.PrependUOffsetTRelative(offset)
    return builder.EndVector()
