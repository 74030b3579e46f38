"""One file in, one run folder out: all probes on all cells of all models, from where an interruption left them.

    python -m probes.study init study.toml
    python -m probes.study run study.toml --out runs/study
    python -m probes.study status runs/study

The same from Python:

    >>> from probes.study import read_study, run_study
    >>> run = run_study(read_study("study.toml"))
    >>> run.matrix, run.table("direction")
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
