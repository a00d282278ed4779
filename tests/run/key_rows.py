"""Every field of what a stage is given: another value, and whether the stage is made again for it."""

from __future__ import annotations

from typing import Any

from key_samples import extra, ref

Rows = dict[str, tuple[Any, bool]]  # place in a record -> another value, and whether the stage after it is made again


def under(place: str, rows: Rows) -> Rows:
    return {f"{place}.{inside}": row for inside, row in rows.items()}


REF: Rows = {
    "sha256": ("9" * 64, True),
    "size": (2, False),
    "media_type": ("image/webp", False),
    "name": ("other.png", False),
}
SHEET_ROWS: Rows = {
    **under("image", REF),
    "width": (301, True),
    "height": (193, True),
    "source": ("given", True),
    "prompt": ("other", False),
    "seed": (7, False),
    "candidates": (2, False),
    "gate": ({"score": 0.5}, False),
    "warnings": (("odd",), False),
    "reference": (ref("e"), False),
    "added": (("green skin",), True),
}
VIEW: Rows = {
    "view": ("back", True),
    **under("image", REF),
    **under("alpha", REF),
    "width": (72, True),
    "height": (136, True),
    "source_box": ((0, 0, 16, 32), True),  # training tells the model how large the figure was on the sheet
    "scale": (3.0, True),
    "facts": ({"sharpness": 3.0}, False),
}
VIEWS_ROWS: Rows = {
    **under("views.0", VIEW),
    "background": ((0, 0, 0), True),
    **under("overlay", {name: (value, False) for name, (value, _) in REF.items()}),
    "facts": ({"pieces": 4.0}, False),
    "warnings": (("odd",), False),
    "added": (("green skin",), True),
}
EXTRA: Rows = {
    "view": ("pose-9", True),
    "kind": ("expression", True),
    "instruction": ("running", True),
    "tags": (("from behind",), True),
    "seed": (10, True),
    "fate": ("held out", True),
    "identity": (0.95, True),
    "threshold": (0.85, True),
    "copying": (0.2, True),
    **under("image", REF),
    **under("alpha", REF),
    "width": (72, True),
    "height": (72, True),
    "background": ((0, 0, 0), True),
}
CAPTION_ROWS: Rows = {
    "view": ("pose-9", True),
    "text": ("griqul, smiling", True),
    "tags": (("smiling",), False),
    "pruned": (("green skin",), False),
    "edited": (True, False),
}
DATASET_ROWS: Rows = {
    "trigger": ("beaxi", True),
    "class_noun": ("orc", True),
    **under("views", VIEWS_ROWS),
    **under("captions.0", CAPTION_ROWS),
    "digest": ("e" * 64, True),
    "side_bound": (True, True),
    "warnings": (("odd",), False),
    **under("extras.0", EXTRA),
}
LOSS_POINT: Rows = {
    "step": (2, True),
    "loss": (0.25, True),
    "by_view": ({"front": 0.3}, True),
    "by_third": ({"low": 0.3}, True),
}
CHECKPOINT: Rows = {
    "step": (3, True),
    **under("adapter", REF),
    "loss": (0.25, True),
    "validation_loss": (0.35, True),
    "samples": ((), False),
    "logged_model_id": ("model", False),
}
TRAINING_ROWS: Rows = {
    **under("checkpoints.0", CHECKPOINT),
    "steps": (3, True),
    "trigger": ("beaxi", True),
    "class_noun": ("orc", True),
    "dataset_digest": ("e" * 64, True),
    **under("curve", REF),
    **under("validation.0", LOSS_POINT),
    **under("base_validation", LOSS_POINT),
    "facts": ({"seconds": 9.0}, False),
    "plan": ({"precision": "bf16"}, False),
    "mlflow_run_id": ("another", False),
    "warnings": (("odd",), False),
}
RUN_ROWS: Rows = {  # its page shows how everything inside was made
    "name": ("Bea", True),
    "prompt": ("an orc man", True),
    "trigger": ("beaxi", True),
    "class_noun": ("orc", True),
    "seed": (43, True),
    "profile": ("other", True),
    "config": ({}, True),
    "sheet.prompt": ("other", True),
    "sheet.warnings": (("odd",), True),
    "dataset.captions.0.pruned": (("green skin",), True),
    "dataset.captions.0.edited": (True, True),
    "training.mlflow_run_id": ("another", True),
    "training.facts": ({"step_ms": 9.0}, True),
    "sweep.pick.strength": (0.8, True),
    "sweep.cells.0.identity": (0.6, True),
    "sweep.images.0/0/0/42.sha256": ("9" * 64, True),
    "expansion": ({"views": (extra(3),)}, True),
    "stages": ((), False),
    "mlflow_run_id": ("another", False),
    "prefect_flow_run_id": ("another", False),
    "warnings": (("odd",), True),
}
TABLES: dict[str, tuple[int, Rows]] = {
    "crop": (0, SHEET_ROWS),
    "expand": (0, VIEWS_ROWS),
    "caption": (0, VIEWS_ROWS),
    "caption: more views": (1, EXTRA),
    "train": (0, DATASET_ROWS),
    "sweep": (0, TRAINING_ROWS),
    "sweep: data set": (1, DATASET_ROWS),
    "report": (0, RUN_ROWS),
}
