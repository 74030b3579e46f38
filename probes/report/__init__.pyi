from .files import write as write
