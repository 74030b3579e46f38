from .pair import PairSummary as PairSummary
from .pair import summarize_pair as summarize_pair
from .summary import Summary as Summary
from .summary import summarize as summarize
