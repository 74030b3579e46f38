from .card import model_card as model_card
from .figures import write_figures as write_figures
from .files import write as write
