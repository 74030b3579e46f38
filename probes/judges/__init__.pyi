from .probe import canaries as canaries
from .probe import measure as measure
