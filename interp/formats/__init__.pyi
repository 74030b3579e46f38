from .packed import PackedFormat as PackedFormat
from .packed import PackedModule as PackedModule
from .packed import Quantization as Quantization
from .packed import TensorRule as TensorRule
from .readers import reader_for as reader_for
