"""Settings with which a whole run takes seconds."""

# the whole pipeline in seconds: nothing it draws means anything, everything it does is real
QUICK = (
    "train.steps=6",
    "train.checkpoints=2",
    "train.save_state_every=2",
    "train.validate_every=0",
    "sweep.seeds=1",
    "sweep.checkpoints=1",
    "sweep.strengths=[0.5, 1.0]",
    "sweep.prompts=['{subject} on a beach']",
    "sweep.width=128",
    "sweep.height=128",
    "sweep.steps=1",
)
