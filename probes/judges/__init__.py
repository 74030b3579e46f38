"""What do other models say that a response is? Judges label the outcomes, a second one checks the first.

    LOCAL_BASE_URL=http://127.0.0.1:8000/v1 LOCAL_API_KEY=none \
    python -m probes.judges runs/refusal/refusal.parquet --baseline llama --judge openai-api/local/qwen3

Any model of Inspect can judge, also a checkpoint (`quantscope/PATH`). Verdicts are stored as they come: the same
command goes on where it stopped. `python -m probes.drift DIR/judges.parquet` then
counts what the first judge says.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
