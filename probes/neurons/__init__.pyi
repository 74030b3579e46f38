from .probe import error_prompts as error_prompts
from .probe import measure as measure
from .probe import verdict as verdict
from .weight_errors import safety_units as safety_units
