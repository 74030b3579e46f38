from .cells import build as build
from .cells import join as join
from .regimes import RegimeRule as RegimeRule
from .regimes import regime_probabilities as regime_probabilities
from .regimes import with_regimes as with_regimes
