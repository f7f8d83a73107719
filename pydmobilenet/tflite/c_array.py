"""A file as a C array, for microcontrollers without a file system."""

from __future__ import annotations

from collections.abc import Sequence

ALIGNMENT = 16
LINE = 20  # numbers


def dump(model: bytes, title: str, labels: Sequence[str]) -> str:
    """Return C, which is C++ too, with a model, its size and its labels."""
    lines = [", ".join(map(str, model[start : start + LINE])) for start in range(0, len(model), LINE)]
    names = [f"  {_quoted(label)},\n" for label in labels]
    return (
        f"// {_quoted(title)}, by pydmobilenet. It takes pixels (1, H, W, 3) in uint8 and gives logits in float32.\n"
        f"#define PYDMOBILENET_LABELS {len(labels)}\n\n"
        f"extern const unsigned char pydmobilenet_model[{len(model)}];  // in C++, for other files\n"
        f"extern const unsigned int pydmobilenet_model_size;\n"
        f"extern const char* const pydmobilenet_labels[PYDMOBILENET_LABELS + 1];\n\n"
        f"#if defined(__cplusplus)\nalignas({ALIGNMENT})\n#else\n_Alignas({ALIGNMENT})\n#endif\n"
        f"const unsigned char pydmobilenet_model[{len(model)}] = {{\n" + ",\n".join(lines) + "};\n"
        f"const unsigned int pydmobilenet_model_size = {len(model)};\n"
        f"const char* const pydmobilenet_labels[PYDMOBILENET_LABELS + 1] = {{\n{''.join(names)}  0}};\n"
    )


def _quoted(text: str) -> str:
    """Return a text in UTF-8 as a C string: all but letters, digits and some others as octal numbers."""
    return '"' + "".join(chr(byte) if _plain(byte) else f"\\{byte:03o}" for byte in text.encode(errors="replace")) + '"'


def _plain(byte: int) -> bool:
    return byte < 128 and (chr(byte).isalnum() or chr(byte) in " -_.,:;()+<>=!")
