from .probe import measure as measure
from .rounding import rounded as rounded
