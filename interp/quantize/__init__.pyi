from .calibration import calibration_of as calibration_of
from .settings import CELLS as CELLS
from .write import write_cells as write_cells
