"""How good are the answers still? Perplexity, KL and flips of tokens; ROUGE-L, BERTScore, coherence and repetition.

    python -m probes.quality --baseline llama --quantized llama-awq --text wiki.txt --references task.jsonl

By default the text and the task are the organisms' own: harmless requests whose answers are known.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
