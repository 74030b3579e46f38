"""Run a notebook and write it with its outputs as Markdown, images beside it: a copy to read without Jupyter.

    python scripts/render_notebook.py notebooks/01_quickstart.ipynb docs

Tables become HTML tables, which Markdown keeps; styles and standard error are left out.
"""

from __future__ import annotations

import base64
import io
import re
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image

COLOURS = 128
"""Of an image: plots have few, and a palette makes the files a third as large."""


def render(source: Path, directory: Path) -> Path:
    """Execute `source` and write `directory/<stem>.md` and `directory/images/<stem>-N.png`; returns the first."""
    notebook = nbformat.read(source, as_version=4)
    NotebookClient(
        notebook, timeout=1200, kernel_name="python3", resources={"metadata": {"path": source.parent}}
    ).execute()
    images = directory / "images"
    images.mkdir(parents=True, exist_ok=True)
    for old in images.glob(f"{source.stem}-*.png"):
        old.unlink()
    note = f"*`notebooks/{source.name}`, executed by `scripts/render_notebook.py`.*"
    parts = [note]
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            parts.append(re.sub(r"\[([^\]]+)\]\((\w+)\.ipynb\)", partial(_link, directory), cell.source))
            continue
        parts.append(f"```python\n{cell.source}\n```")
        for output in cell.outputs:
            parts += _output(output, images / f"{source.stem}-{number}.png")
    page = directory / f"{source.stem}.md"
    page.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return page


def _link(directory: Path, match: re.Match[str]) -> str:
    """A link to another notebook: to its page where there is one, else its file's name."""
    text, name = match.groups()
    return f"[{text}]({name}.md)" if (directory / f"{name}.md").exists() else f"{text} (`notebooks/{name}.ipynb`)"


def _output(output: Any, image: Path) -> Iterator[str]:
    """The Markdown of one output; an image is written beside."""
    data = output.get("data", {})
    if output.output_type == "stream" and output.name == "stdout":
        yield f"```text\n{output.text.rstrip()}\n```"
    elif "image/png" in data:
        picture = Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).convert("RGB")
        picture.quantize(COLOURS).save(image, optimize=True)
        yield f"![{image.stem}]({image.parent.name}/{image.name})"
    elif "text/html" in data:
        html = re.sub(r"<style.*?</style>\s*", "", data["text/html"], flags=re.DOTALL)
        html = re.sub(r'\s*(?:border|class|style|id|scope)="[^"]*"|\s+(?=>)', "", html)
        yield "\n".join(line.strip() for line in html.splitlines() if line.strip())  # a blank line would end the table
    elif data.get("text/plain"):
        yield f"```text\n{data['text/plain']}\n```"


if __name__ == "__main__":
    for name in sys.argv[1:-1]:
        print(render(Path(name), Path(sys.argv[-1])))
