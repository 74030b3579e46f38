from .memory import Plan as Plan
from .memory import plan as plan
from .streamed import Streamed as Streamed
