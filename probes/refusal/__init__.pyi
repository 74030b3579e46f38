from .ask import ask as ask
from .controls import flips as flips
from .probe import measure as measure
from .probe import rates as rates
