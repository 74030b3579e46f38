"""RTSI, the Refusal Template Stability Index."""

from probes.refusal_text import RefusalFeatures, is_refusal, refusal_features
from probes.rtsi_index import DELTAS, RTSI

__all__ = ["DELTAS", "RTSI", "RefusalFeatures", "is_refusal", "refusal_features"]
