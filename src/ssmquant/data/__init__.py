"""Text for calibration and evaluation, and the files that ship inside the package.

    calibration_windows("builtin:en=0.5,code=0.5", tokenizer, samples=128, seqlen=512)      # [128, 512]
    chinese, = evaluation_documents("builtin:zh")
    windows(chinese.texts, tokenizer, samples=16, seqlen=1024, source=chinese.name)         # [16, 1024]

Leaves out: data sets fetched from elsewhere (write them to a ``.jsonl`` file first), and filtering.
"""

from __future__ import annotations

from ssmquant.data.assets import asset, builtin_model
from ssmquant.data.documents import DOMAINS, Documents, evaluation_documents, load_documents
from ssmquant.data.windows import calibration_windows, windows

__all__ = [
    "DOMAINS",
    "Documents",
    "asset",
    "builtin_model",
    "calibration_windows",
    "evaluation_documents",
    "load_documents",
    "windows",
]
