from .probe import measure as measure
from .projection import Projection as Projection
