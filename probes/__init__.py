"""The measurements. A probe takes hooked models (or completions) and prompts and returns one tidy table.

`python -m probes` lists them. What a notebook starts with, tables that are measured when they are asked for:

    >>> import probes
    >>> study = probes.measure("path/to/model", {"AWQ": "path/to/model-AWQ"})
    >>> study.entropy, study.direction.plot(), study.report("out.html")

Each probe is a module with a `measure` of its own, for those who want one of them:

    >>> from interp import load
    >>> from probes import Cells, builtin, entropy
    >>> baseline = load("path/to/model")
    >>> cells = Cells({"AWQ": "path/to/model-AWQ"}, baseline)
    >>> entropy.measure(baseline, cells, builtin("harmful"), builtin("harmless")).table
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
