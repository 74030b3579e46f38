from .gate import Bounds as Bounds
from .gate import Verdict as Verdict
from .gate import verdicts as verdicts
from .probe import measure as measure
from .stored import CheckResult as CheckResult
from .stored import read_check as read_check
