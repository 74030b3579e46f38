from .probe import default_task as default_task
from .probe import measure as measure
from .probe import organism_task as organism_task
from .probe import read_task as read_task
