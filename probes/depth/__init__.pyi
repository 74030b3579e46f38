from .probe import DepthResult as DepthResult
from .probe import measure as measure
