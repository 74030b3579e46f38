"""How good are the answers still? Perplexity, KL and flips of tokens; ROUGE-L, BERTScore, coherence and repetition.

    python -m probes.quality --baseline llama --quantized llama-awq --text wiki.txt --references task.jsonl

Without references the baseline's own answers to harmless prompts stand for them; an organism has a task of its own.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
