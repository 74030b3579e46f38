"""The instrument: open a checkpoint of any format, read its dense weights, hook its activations.

Nothing here knows of prompts or refusals; those live in `probes`.
"""
