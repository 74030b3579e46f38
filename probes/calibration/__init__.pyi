from .probe import confidence as confidence
from .probe import expected_calibration_error as expected_calibration_error
from .probe import measure as measure
from .probe import refusals_from as refusals_from
