from .blame import labelled as labelled
from .probe import Rewriting as Rewriting
from .probe import WhyResult as WhyResult
from .probe import measure as measure
