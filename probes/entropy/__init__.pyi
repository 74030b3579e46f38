from .probe import entropy as entropy
from .probe import measure as measure
