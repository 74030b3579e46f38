from .constraints import Bounded as Bounded
from .constraints import Inside as Inside
from .corpus import task_examples as task_examples
from .settings import ARCHITECTURES as ARCHITECTURES
from .training import Recipe as Recipe
from .training import calibration_texts as calibration_texts
from .training import organism_path as organism_path
from .training import train as train
