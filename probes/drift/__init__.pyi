from .probe import Bound as Bound
from .probe import matters as matters
from .probe import measure as measure
