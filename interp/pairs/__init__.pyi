from .scales import effective_weight as effective_weight
from .scales import recovered_scales as recovered_scales
from .weight_error import check_pair as check_pair
from .weight_error import weight_error as weight_error
