"""The measurements. A probe takes hooked models (or completions) and prompts and returns one tidy table.

`python -m probes` lists them; each is a module with a `measure` of its own. What a notebook starts with is here:

    >>> from interp import load
    >>> from probes import Cells, builtin, entropy
    >>> baseline = load("path/to/model")
    >>> cells = Cells({"AWQ": "path/to/model-AWQ"}, baseline)
    >>> entropy.measure(baseline, cells, builtin("harmful"), builtin("harmless")).table
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
