from .packed import PackedFormat as PackedFormat
from .packed import PackedModule as PackedModule
from .packed import Part as Part
from .packed import Quantization as Quantization
from .readers import reader_for as reader_for
