"""The dataset as one number."""

from __future__ import annotations

import hashlib

from charengine.records import CaptionRecord, ExtraView, ViewsRecord


def dataset_digest(views: ViewsRecord, captions: tuple[CaptionRecord, ...], extras: tuple[ExtraView, ...] = ()) -> str:
    """SHA-256 over what is trained on and validated with: each view's image, mask and caption, and nothing else."""
    texts = {caption.view: caption.text for caption in captions}
    digest = hashlib.sha256()
    for view in views.views:
        for part in (view.view, view.image.sha256, view.alpha.sha256, texts[view.view]):
            digest.update(part.encode() + b"\0")
    for extra in extras:
        for part in (extra.view, extra.fate, extra.image.sha256, extra.alpha.sha256, texts[extra.view]):
            digest.update(part.encode() + b"\0")
    return digest.hexdigest()
