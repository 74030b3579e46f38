"""The reader of a path, by what lies there."""

from __future__ import annotations

from pathlib import Path

from interp.documents import require_file
from interp.errors import InputError
from interp.formats.reader import Reader


def reader_for(path: Path) -> Reader:
    """The reader of a local path: a .gguf file, a directory with one (or its parts), or a Hugging Face directory.

    Raises:
        InputError: none of these.
    """
    if path.suffix == ".gguf" and not path.is_dir():
        from interp.formats.gguf import GGUFReader

        return GGUFReader(require_file(path, "a .gguf file"))
    if not path.is_dir():
        raise InputError(
            f"{path} is a file that is not a .gguf",
            "a directory with config.json and safetensors files, or a .gguf file",
            "Give the directory that holds the file",
        )
    ggufs = sorted(path.glob("*.gguf"))
    if len(ggufs) > 1:
        from interp.formats.gguf_split import first_parts

        ggufs = first_parts(ggufs)
    if ggufs and not (path / "config.json").is_file():
        if len(ggufs) > 1:
            raise InputError(
                f"{path} holds {len(ggufs)} .gguf files ({', '.join(file.name for file in ggufs[:4])} …)",
                "exactly one",
                "Give the file itself",
            )
        return reader_for(ggufs[0])
    from interp.formats.huggingface import HuggingFaceReader

    return HuggingFaceReader(path)
