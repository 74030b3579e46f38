from .write import export as export
