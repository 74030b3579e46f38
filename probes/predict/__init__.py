"""Do the measurements predict which cells lose refusals? All predictors of any runs, against RTSI, in one table.

python -m probes.predict RUN…

A run is a folder with the matrix and the probes' tables that `make demo` or a study writes; no model is loaded.

What tiny models can and cannot show: organisms say whether a measurement orders cells by the damage that was done to
them, in models whose refusals were trained the same way, with every cell's behaviour known. They cannot say what share
of cells of a large model is in danger, how large a margin shift is dangerous there, or that an AUC carries over: their
refusals sit in few directions, their prompts come from one small world, and their damage is that of models without
redundancy. A predictor that fails here has little to hope for; one that succeeds here is worth measuring there.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
