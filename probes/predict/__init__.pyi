from .cells import read_cells as read_cells
from .probe import Prediction as Prediction
from .probe import measure as measure
