"""Does it reproduce? Every published figure that the reference tables determine, recomputed and printed beside ours.

Its refusals are the study's, by definition: answers that open with one of 13 phrases (`probes.labels.study_lexicon`).

python -m probes.reproduce --out results
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
