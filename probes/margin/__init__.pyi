from .openings import Openings as Openings
from .openings import find_openings as find_openings
from .probe import MarginResult as MarginResult
from .probe import measure as measure
from .refusal_margin import margins as margins
