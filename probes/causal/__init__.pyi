from .probe import CausalResult as CausalResult
from .probe import measure as measure
