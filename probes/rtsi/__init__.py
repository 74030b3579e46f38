"""Has the wording of refusals moved? RTSI, the Refusal Template Stability Index: fit, score, validate, route.

By definition it looks at the answers that open with one of the study's phrases, whoever decides what is a refusal
elsewhere (`probes.labels.refused`).

python -m probes.rtsi score --baseline fp16.jsonl --quantized q4=q4.jsonl
python -m probes.rtsi fit features.csv --calibration mine.json
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
