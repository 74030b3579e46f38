from .measurements import Measurements as Measurements
from .measurements import measure as measure
from .table import MeasuredTable as MeasuredTable
