from .probe import GeometryResult as GeometryResult
from .probe import measure as measure
