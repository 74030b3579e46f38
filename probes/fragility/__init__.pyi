from .probe import FragilityResult as FragilityResult
from .probe import measure as measure
from .rounding import nearest as nearest
from .rounding import rounded_to as rounded_to
from .rounding import stochastic as stochastic
