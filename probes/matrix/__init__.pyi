from .cells import build as build
from .cells import join as join
from .regimes import RegimeRule as RegimeRule
from .regimes import classify as classify
from .regimes import regime_probabilities as regime_probabilities
