from .study import CELLS as CELLS
from .study import cell_notes as cell_notes
from .study import study_text as study_text
