"""Defaults of the options of `probes.fragility`; light, so that `--help` answers at once."""

BITS = (8, 4, 3, 2)
GROUP = 128
DRAWS = 8
