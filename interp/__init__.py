"""The instrument: open a checkpoint of any format, read its dense weights, hook its activations.

Nothing here knows of prompts or refusals; those live in `probes`.

Example:
    >>> from interp import load, open_checkpoint, weight_error
    >>> open_checkpoint("path/to/model-AWQ").weight("model.layers.0.mlp.down_proj")  # dense [out, in]
    >>> load("path/to/model-AWQ").activations(["How are you?"], ["blocks.3.hook_resid_post"], chat=True)
    >>> weight_error("path/to/model", "path/to/model-AWQ")  # a row per neuron
"""

import logging
import warnings

import lazy_loader

# What other packages say of each other on import, which a user of ours can do nothing about: torchao calls what torch
# deprecates, and tqdm wants ipywidgets in every notebook.
logging.getLogger("torch.utils._pytree").addFilter(lambda record: "Enum subclass" not in str(record.msg))
warnings.filterwarnings("ignore", message="IProgress not found")

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
