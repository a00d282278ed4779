"""How likeness and adherence rise with strength and step: polynomials of 38 adapters of held-out characters of the embedded family.

`benchmarks/pick_shapes.py` prints them. Trained rightly, too short, too long and on one view, each kind weighing alike, so that they leave
room for any training: they say that likeness rises and bends, not where it is best (lab notes, 2026-12-01).
"""

from __future__ import annotations

from charengine.stages.sweep.surface import Shape

GAIN = Shape(
    (1.341, -0.568, 0.496, -0.306, -0.039),
    (
        (0.489, 0.0, 0.0, 0.0, 0.0),
        (-0.314, 0.047, 0.0, 0.0, 0.0),
        (-0.058, 0.25, 0.294, 0.0, 0.0),
        (-0.134, -0.093, -0.113, 0.141, 0.0),
        (-0.097, 0.079, 0.119, 0.17, 0.051),
    ),
)
KEPT = Shape(
    (0.045, -0.028, 0.058, -0.027, 0.024),
    (
        (0.144, 0.0, 0.0, 0.0, 0.0),
        (-0.078, 0.036, 0.0, 0.0, 0.0),
        (0.051, 0.038, 0.123, 0.0, 0.0),
        (-0.019, 0.01, -0.012, 0.048, 0.0),
        (0.027, 0.026, 0.108, 0.058, 0.033),
    ),
)
