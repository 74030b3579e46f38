"""Who says that it is a refusal? Labels from the text of a completion: the study's lexicon and a broader one.

The study's lexicon (`probes.labels.study_lexicon.is_refusal`) is a list of openings. The broader one reads the first
sentences
for several families of wording, leaves idioms out ("I can't wait to"), and tells partial refusals and degenerate text
apart. Neither reads the request: whether an answer does harm is a question for a judge (`probes.judges`).

    python -m probes.labels --against completions/*.jsonl
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
