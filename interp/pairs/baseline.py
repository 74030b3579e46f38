"""Whether a baseline is the model from before quantization, as far as its own files tell."""

from __future__ import annotations

from collections.abc import Mapping

from interp.checkpoint import Checkpoint
from interp.quantize.cells import read_record

_CONSEQUENCE = "what is measured is damage on top of that, not against the model from before quantization"


def baseline_warnings(baseline: Checkpoint) -> list[str]:
    """What to record where a baseline is quantized, or was made of weights that were.

    Args:
        baseline: given as the unquantized checkpoint.

    Returns:
        A warning where some of its linears are stored quantized, or where `interp.dequantize` wrote it from such a
        checkpoint; else nothing.
    """
    if baseline.has_quantized_linears():
        kind = baseline.quantization.get("version") if baseline.format == "gguf" else None
        named = f"{baseline.format} {kind}" if kind else baseline.format
        return [f"it is quantized itself ({named}, {baseline.bits_per_weight():.2f} bits per weight): {_CONSEQUENCE}"]
    record = read_record(baseline.path)
    source = {} if record is None or record.writer != "interp.dequantize" else record.details.get("source", {})
    if isinstance(source, Mapping) and source.get("quantization", {}) and not _dense(source):
        bits = f"{source['format']}, {source['bits_per_weight']:.2f} bits per weight"
        return [f"it was dequantized from a quantized checkpoint ({bits}): {_CONSEQUENCE}"]
    return []


def _dense(source: Mapping[str, object]) -> bool:
    """A GGUF in float16 or wider."""
    bits = source.get("bits_per_weight")
    return not isinstance(bits, (int, float)) or bits >= 16
