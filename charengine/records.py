"""What stages hand on: small frozen models that hold refs and facts, never pixels or tensors (docs/design.md, rule 1)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator
from pydantic.types import JsonValue

ViewName = Literal["front", "side", "back"]
VIEWS: tuple[ViewName, ...] = ("front", "side", "back")
HELD_OUT = "held out "  # before the name of a picture in a validation loss that is not trained on


class Record(BaseModel):
    """Base of all records: immutable, unknown keys refused."""

    # a number that nobody measured is None; one that came out as NaN or infinite is a failure of the stage that measured it
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    provenance: ClassVar[frozenset[str]] = frozenset()
    """Fields that say how the record came about, not what it is; no stage's key depends on them."""

    optional: ClassVar[tuple[str, ...]] = ()
    """Fields left out of the dump where nothing is in them, so that digests are what they were before these were thought of."""

    @model_serializer(mode="wrap")
    def _without_what_is_not_there(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        data: dict[str, Any] = write(self)
        return {key: value for key, value in data.items() if value or key not in self.optional}


class Ref(Record):
    """A blob in the store: found by its digest, never by its path."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0, description="bytes")
    media_type: str
    name: str = Field(description="file name to give the blob outside the store")

    provenance = frozenset({"size", "media_type", "name"})


class SheetRecord(Record):
    """A sheet and how it was made."""

    image: Ref
    width: int
    height: int
    prompt: str = Field(description="the full sheet prompt, or '' for a sheet the user brought")
    source: Literal["drawn", "given"]
    seed: int
    candidates: int = 1
    gate: dict[str, JsonValue] = Field(default_factory=dict, description="numbers and answers the sheet gate measured")
    warnings: tuple[str, ...] = ()
    reference: Ref | None = Field(default=None, description="the picture of the character that it was drawn from")
    added: tuple[str, ...] = Field(default=(), description="traits that it was told beside the character's prompt")

    provenance = frozenset({"prompt", "seed", "candidates", "gate", "warnings", "reference"})
    optional = ("reference", "added")


class ViewRecord(Record):
    """One cropped view, padded to a training bucket."""

    view: ViewName
    image: Ref = Field(description="RGB PNG, bucket-sized, background-coloured padding")
    alpha: Ref = Field(description="L PNG of the same size, 255 = figure")
    width: int
    height: int
    source_box: tuple[int, int, int, int] = Field(description="x0, y0, x1, y1 on the sheet, pixels")
    scale: float | None = Field(
        default=None, gt=0, description="pixels that one of the sheet became; None for views without a sheet"
    )
    facts: dict[str, float] = Field(default_factory=dict)

    provenance = frozenset({"facts"})  # box and scale are content: training tells the model the size on the sheet

    @model_validator(mode="before")
    @classmethod
    def _scale_is_no_fact(cls, data: Any) -> Any:
        """Views of 0.1.0 had their scale among the facts."""
        if isinstance(data, dict) and isinstance(facts := data.get("facts"), dict) and "scale" in facts:
            return {"scale": facts["scale"], **data}
        return data


class ViewsRecord(Record):
    """The three views of a sheet and the crop's quality numbers."""

    views: tuple[ViewRecord, ...]
    background: tuple[int, int, int] = Field(description="RGB 0-255 of the sheet's background")
    overlay: Ref | None = Field(default=None, description="the sheet with the found boxes, PNG; None without a sheet")
    facts: dict[str, float] = Field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    added: tuple[str, ...] = Field(default=(), description="the sheet's")

    provenance = frozenset({"overlay", "facts", "warnings"})
    optional = ("added",)


class ExtraView(Record):
    """One more view, drawn by the edit model from one of the sheet's, and what became of it."""

    view: str = Field(pattern=r"^[a-z][a-z0-9-]*$", description="its name: kind and number, 'pose-1'")
    kind: str
    instruction: str = Field(description="what the edit model was told")
    tags: tuple[str, ...] = Field(description="view and framing words for its caption, as asked for")
    seed: int
    fate: Literal["trained", "held out", "refused"]
    identity: float = Field(description="cosine to the most similar view of the sheet in the same framing")
    threshold: float = Field(description="the least identity with which it is kept")
    copying: float = Field(description="correlation with the picture it was drawn from, at 24x24; 1 = nothing changed")
    image: Ref = Field(description="RGB PNG, square")
    alpha: Ref = Field(description="L PNG of the same size, 255 = figure; all of it before a scene")
    width: int
    height: int
    background: tuple[int, int, int] | None = Field(description="RGB 0-255 of a plain background; None for a scene")


class ExpansionRecord(Record):
    """Every picture that was drawn to get more views, in the order drawn, kept or not."""

    views: tuple[ExtraView, ...]
    warnings: tuple[str, ...] = ()

    @property
    def kept(self) -> tuple[ExtraView, ...]:
        """Those that are the character: trained or held out."""
        return tuple(view for view in self.views if view.fate != "refused")


class CaptionRecord(Record):
    """The caption of one view."""

    view: str = Field(description="front, side, back, or an extra view's name")
    text: str = Field(description="trigger, class noun, view, framing, tags…")
    tags: tuple[str, ...] = Field(default=(), description="what the captioner said, before pruning")
    pruned: tuple[str, ...] = Field(default=(), description="the character's own traits, bound to the trigger")
    edited: bool = False

    provenance = frozenset({"tags", "pruned", "edited"})


class DatasetRecord(Record):
    """Views and captions in kohya's layout, as one thing with one digest."""

    trigger: str
    class_noun: str
    views: ViewsRecord
    captions: tuple[CaptionRecord, ...]
    digest: str = Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 over images, masks and captions")
    side_bound: bool = Field(default=False, description="the character has items bound to one side: never flip")
    warnings: tuple[str, ...] = ()
    extras: tuple[ExtraView, ...] = Field(default=(), description="more views that were kept; captioned as the others")

    provenance = frozenset({"warnings"})
    optional = ("extras",)

    @property
    def trained_extras(self) -> tuple[ExtraView, ...]:
        """More views that are trained on."""
        return tuple(extra for extra in self.extras if extra.fate == "trained")

    @property
    def held_out(self) -> tuple[ExtraView, ...]:
        """More views that are only validated with."""
        return tuple(extra for extra in self.extras if extra.fate == "held out")


class LossPoint(Record):
    """Fixed-noise validation loss at a step; keys of `by_view` are names of views (see HELD_OUT), of `by_third` low/mid/high timesteps."""

    step: int
    loss: float
    by_view: dict[str, float] = Field(default_factory=dict)
    by_third: dict[str, float] = Field(default_factory=dict)


class CheckpointRecord(Record):
    """An adapter at a step."""

    step: int
    adapter: Ref
    loss: float | None = Field(default=None, description="smoothed training loss; None when trained elsewhere")
    validation_loss: float | None = None
    samples: tuple[Ref, ...] = ()
    logged_model_id: str | None = None

    provenance = frozenset({"samples", "logged_model_id"})


class AdapterRecord(Record):
    """What training made: checkpoints in step order (the last is the adapter as trained) and its curves."""

    checkpoints: tuple[CheckpointRecord, ...]
    steps: int
    trigger: str
    class_noun: str
    dataset_digest: str
    curve: Ref | None = Field(
        default=None, description="CSV: step, loss, smoothed, learning_rate; None for an adapter trained elsewhere"
    )
    validation: tuple[LossPoint, ...] = ()
    base_validation: LossPoint | None = Field(default=None, description="the base model on the same noise")
    facts: dict[str, float] = Field(default_factory=dict, description="step_ms, stepping_ms, peak_gib, seconds, …")
    plan: dict[str, JsonValue] = Field(default_factory=dict, description="the memory plan that was chosen")
    mlflow_run_id: str | None = None
    warnings: tuple[str, ...] = ()

    provenance = frozenset({"facts", "plan", "mlflow_run_id", "warnings"})

    @property
    def final_loss(self) -> float | None:
        """Smoothed training loss at the last checkpoint; None for an adapter trained elsewhere."""
        return self.checkpoints[-1].loss


class Smoothed(Record):
    """A cell as all pictures of its sweep tell it: each axis smoothed over strength and step, the score made from them."""

    gain: float
    kept: float
    diversity_kept: float | None = Field(default=None, description="None: variety was not measured")
    copying: float | None = Field(default=None, description="None: no scene was drawn")
    score: float = Field(description="harmonic mean of gain and kept, each clipped to 0..1")
    kept_most: float = Field(description="what kept may be at best in all but one of twenty cases; floors look at this")
    diversity_most: float | None = None
    copying_least: float | None = None


class CellMetrics(Record):
    """Scores of one checkpoint at one strength, over its prompts and seeds; strength 0 is the base model."""

    checkpoint_step: int
    strength: float
    identity: float
    adherence: float
    diversity: float
    copying: float
    score: float
    images: int
    gain: float = Field(description="0 = the base model, 1 = the sheet's own views, by identity and described traits")
    kept: float = Field(description="adherence as a share of strength 0's; 0 = as fitting for any other prompt")
    diversity_kept: float = Field(description="variety between seeds as a share of strength 0's; 1 when not measured")
    margin: float | None = Field(default=None, description="adherence minus the match with the other prompts")
    background_leak: float | None = Field(default=None, description="border in the sheet's colour, above strength 0's")
    class_leak: float | None = Field(default=None, description="identity of class prompts, above strength 0's")
    shown: float | None = Field(default=None, description="share of the described traits that the reader sees")
    sheet_shown: float | None = Field(default=None, description="strength 0 alone: that share in the sheet's own views")
    ceiling: float | None = Field(default=None, description="strength 0 alone: mean cosine of the sheet's own views")
    score_low: float | None = Field(default=None, description="with score_high: 90 % bounds of the smoothed score")
    score_high: float | None = None
    wins: float | None = Field(default=None, description="chance to be the best of the cells tried, 0..1")
    on_front: bool | None = Field(default=None, description="no cell beats it on gain without losing on kept")
    smoothed: Smoothed | None = None
    mlflow_run_id: str | None = None

    provenance = frozenset({"mlflow_run_id"})

    @property
    def known(self) -> CellMetrics | Smoothed:
        """The best that is known of a cell: its smoothed numbers, or its own where nothing was smoothed."""
        return self.smoothed or self

    @model_validator(mode="before")
    @classmethod
    def _lift_detail(cls, data: Any) -> Any:
        """Earlier records kept the numbers from `gain` to `on_front` in a dictionary called `detail`."""
        if not (isinstance(data, dict) and isinstance(data.get("detail"), dict)):
            return data
        lifted = {**data, **data["detail"]}
        del lifted["detail"]
        return lifted


class PickRecord(Record):
    """The recommended checkpoint and strength, and why."""

    checkpoint_step: int
    strength: float
    reasons: tuple[str, ...]
    metrics: CellMetrics
    baseline: CellMetrics = Field(description="strength 0")
    overbaked: CellMetrics = Field(description="strength 1 of the last checkpoint")
    expected_loss: float | None = Field(
        default=None, description="score that the best cell tried may have above the pick's, on average over the noise"
    )


class Verdict(Record):
    """Whether training went too far, not far enough, or neither, by the sweep's own smoothed scores."""

    kind: Literal["over", "under", "right"]
    line: str = Field(description="the finding and what to do next, one sentence each")
    change: float | None = Field(
        default=None, description="score won by the lower strength (over), or by the last steps"
    )


class Words(Record):
    """What the trigger alone brings of the character at the pick, and how to say the rest."""

    shares: dict[str, float] = Field(description="trait in words -> share of the pictures it is shown in, 0..1")
    pictures: int = Field(description="how many were read, drawn with trigger and class noun alone")
    said: tuple[str, ...] = Field(description="traits that are not shown often enough and so are said")
    recommended_prompt: str = Field(description="how a prompt begins that shows the character")
    scenes: tuple[str, ...] = Field(description="prompts of the pictures that are shown, with {subject}")
    drawn: tuple[Ref, ...] = Field(description="a picture a scene: the pick, told the recommended prompt")
    base: tuple[Ref, ...] = Field(description="the base model told the same words, on the same noise")
    shown: float | None = Field(description="share of the traits that can be told in `drawn` which it shows")
    base_shown: float | None


class SweepRecord(Record):
    """All cells of a sweep, its pictures, and the pick."""

    cells: tuple[CellMetrics, ...]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    contact_sheet: Ref
    plot: Ref | None = None
    images: dict[str, Ref] = Field(default_factory=dict, description="`picture_name` -> picture")
    pick: PickRecord
    adapter: Ref = Field(description="as trained: last checkpoint")
    recommended_adapter: Ref = Field(description="the pick, rescaled so that strength 1.0 is the recommended one")
    mlflow_run_id: str | None = None
    warnings: tuple[str, ...] = ()
    verdict: Verdict | None = Field(default=None, description="None in earlier records")
    words: Words | None = Field(default=None, description="None in earlier records")

    provenance = frozenset({"mlflow_run_id", "warnings"})

    def picture(self, cell: CellMetrics, prompt: int) -> Ref | None:
        """A cell's picture of a prompt on the first seed, if it was drawn."""
        return self.images.get(picture_name(cell.checkpoint_step, cell.strength, prompt, self.seeds[0]))


def picture_name(step: int, strength: float, prompt: int, seed: int) -> str:
    """What a sweep calls one picture: checkpoint step, strength, index of the prompt, seed."""
    return f"{step}/{strength:g}/{prompt}/{seed}"


class ReportRecord(Record):
    """The self-contained HTML page."""

    html: Ref


class StageFact(Record):
    """How one stage of a run went."""

    stage: str
    key: str
    cached: bool
    seconds: float
    peak_rss_gib: float | None = None


class RunRecord(Record):
    """One character run, prompt to report: everything the CLI, the report and MLflow show."""

    name: str
    prompt: str
    trigger: str
    class_noun: str
    seed: int
    profile: str
    config: dict[str, Any] = Field(description="the whole resolved config")
    sheet: SheetRecord
    dataset: DatasetRecord
    training: AdapterRecord
    sweep: SweepRecord
    stages: tuple[StageFact, ...]
    mlflow_run_id: str | None = None
    prefect_flow_run_id: str | None = None
    warnings: tuple[str, ...] = ()
    expansion: ExpansionRecord | None = Field(default=None, description="None when no more views were asked for")

    provenance = frozenset({"stages", "mlflow_run_id", "prefect_flow_run_id"})
    optional = ("expansion",)

    @property
    def views(self) -> ViewsRecord:
        """The sheet's three views."""
        return self.dataset.views

    @property
    def recommended_prompt(self) -> str:
        """How a prompt begins that shows the character."""
        return self.sweep.words.recommended_prompt if self.sweep.words else f"{self.trigger} {self.class_noun}"

    @model_validator(mode="before")
    @classmethod
    def _views_are_the_data_sets(cls, data: Any) -> Any:
        """Runs of 0.1.0 held the views a second time."""
        return {key: value for key, value in data.items() if key != "views"} if isinstance(data, dict) else data


class RunResult(Record):
    """What a run made and where it lies: what the flow and Python return, and `charengine run --json` says."""

    name: str
    trigger: str
    recommended_prompt: str = Field(description="how a prompt begins that shows the character")
    traits: dict[str, float] = Field(default={}, description="share of pictures that show it by the trigger alone")
    sheet: Path
    views: tuple[Path, ...]
    captions: tuple[Path, ...]
    adapter: Path = Field(description="as trained: the last checkpoint")
    recommended_adapter: Path = Field(description="the pick, rescaled so that strength 1.0 is the recommended one")
    checkpoint_step: int
    strength: float
    report: Path
    mlflow_run_id: str | None
    prefect_flow_run_id: str | None
    cached_stages: tuple[str, ...]
    warnings: tuple[str, ...]
    seconds: dict[str, float]
