from .probe import measure as measure
