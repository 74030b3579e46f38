from .probe import cosine as cosine
from .probe import measure as measure
from .probe import refusal_directions as refusal_directions
