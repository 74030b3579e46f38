from .settings import CELLS as CELLS
from .write import calibration_of as calibration_of
from .write import write_cells as write_cells
