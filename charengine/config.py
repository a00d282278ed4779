"""Settings: frozen, unknown keys refused, all mistakes reported together.

A `Profile` is models + settings for a kind of machine. `load_profile("embedded", ["train.steps=800"])` is the one way in.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from charengine.field_types import MAX_PROMPT, Line, MaybeWords, Text, Words, without_sign
from charengine.together import caption_problems, is_prodigy, refuse, sheet_problems, sweep_problems, training_problems
from charengine.wording import CONTROL, name_problem, noun_problem, refuse_twice, shows, trigger_problem


class Settings(BaseModel):
    """Base of all settings: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    silent: ClassVar[frozenset[str]] = frozenset()  # as they are by default, these leave no trace: they came later

    _no_sign_of_zero = field_validator("*")(without_sign)

    @model_serializer(mode="wrap")
    def _without_what_is_silent(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields, data = type(self).model_fields, write(self)
        return {k: v for k, v in data.items() if k not in self.silent or getattr(self, k) != fields[k].default}

    def problems(self) -> list[str]:
        """What cannot work together, each by itself allowed."""
        return []

    @model_validator(mode="after")
    def _works_together(self) -> Self:
        refuse(self.problems())
        return self

    def digest(self) -> str:
        """SHA-256 of the canonical JSON, stable across machines, processes and key order."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def params(self, section: str) -> dict[str, object]:
        """As MLflow's parameters `section.key`, those that say something."""
        return {f"{section}.{k}": v for k, v in self.model_dump(mode="json").items() if v not in ("", [], None)}


class Character(Settings):
    """Who is to be made."""

    name: Text = Field(description="letters, digits, space, _ and -; names the files and, unless set, the trigger")
    prompt: Text = Field(description="one sentence saying what the character looks like")
    class_noun: Text = Field(default="", description='"woman", "robot"…; empty: taken from the prompt')
    trigger: Text = Field(default="", description="rare word that will mean the character; empty: taken from the name")
    seed: int = Field(
        default=42, ge=0, lt=2**31, description="all noise comes from it: same seed, same machine kind, same files"
    )

    @field_validator("name")
    @classmethod
    def _name_is_a_plain_word(cls, value: str) -> str:
        return _allowed(value, name_problem(value))

    @field_validator("prompt")
    @classmethod
    def _prompt_is_a_sentence(cls, value: str) -> str:
        text = " ".join(value.split())
        if not shows(text):
            raise ValueError(
                "prompt is empty: describe the character in one sentence, e.g. 'an orc woman in a blue coat', or give --reference"
            )
        if found := CONTROL.search(text):
            raise ValueError(f"prompt holds the control character {found[0]!a}: write it as plain text")
        if len(text) > MAX_PROMPT:
            raise ValueError(
                f"prompt has {len(text)} characters; at most {MAX_PROMPT} are allowed: keep what can be seen, drop the story"
            )
        return text

    @field_validator("trigger")
    @classmethod
    def _trigger_is_one_rare_word(cls, value: str) -> str:
        return _allowed(value, trigger_problem(value) if value else "")

    @field_validator("class_noun")
    @classmethod
    def _class_noun_is_a_few_words(cls, value: str) -> str:
        return _allowed(value, noun_problem(value) if value else "")


def _allowed(value: str, problem: str) -> str:
    if problem:
        raise ValueError(problem)
    return value


class EditLora(Settings):
    """A LoRA for the edit model, always on; as text: the file alone, at strength 1."""

    file: str = Field(min_length=1, description=".safetensors file, or its name in a loras folder")
    strength: float = Field(default=1.0, ge=-4, le=4)

    @model_validator(mode="before")
    @classmethod
    def _text_is_a_file(cls, value: Any) -> Any:
        return {"file": value} if isinstance(value, str) else value


class ModelSettings(Settings):
    """Which models, and where their files are. A string is a folder, a file, or a hub id (only with allow_downloads)."""

    family: Literal["embedded", "sdxl"] = Field(
        default="embedded", description="the tiny family that ships with the package, or full-size models"
    )
    edit: str = Field(default="", description="Qwen-Image-Edit: folder, .safetensors or .gguf transformer, or hub id")
    edit_config: str = Field(
        default="", description="diffusers folder giving configs/VAE/encoder when `edit` is a single file"
    )
    vl: str = Field(default="", description="Qwen2.5-VL: folder or ComfyUI text-encoder file; empty: the editor's own")
    vae: str = Field(default="", description="Qwen-Image VAE file; empty: the edit model's own")
    lightning: str = Field(default="", description="Lightning LoRA file for 4/8-step sheets")
    edit_loras: tuple[EditLora, ...] = Field(
        default=(),
        description="your own LoRAs for the edit model: files, or {file, strength}; a Lightning LoRA goes into `lightning`",
    )
    sdxl: str = Field(default="", description="SDXL checkpoint: folder or single .safetensors file, or hub id")
    sdxl_config: str = Field(default="", description="diffusers folder: configs and tokenizers of a single-file `sdxl`")
    sdxl_vae: str = Field(default="", description="replacement VAE (e.g. the fp16-fixed one)")
    prediction_type: Literal["auto", "epsilon", "v_prediction"] = Field(
        default="auto", description="what the SDXL U-Net predicts; auto: as its files say, else measured once"
    )
    zero_terminal_snr: bool | None = Field(
        default=None, description="betas rescaled to end in pure noise; empty: as the checkpoint's files say"
    )
    prompt_prefix: MaybeWords = Field(
        default=None,
        description="before every SDXL prompt; empty: the quality tags of the checkpoint's family; '' = none",
    )
    negative_prompt: MaybeWords = Field(
        default=None, description="of every SDXL picture; empty: that of the checkpoint's family; '' = none"
    )
    tagger: str = Field(default="", description="WD14 v3 tagger folder (model.onnx + selected_tags.csv)")
    clip: str = Field(default="", description="CLIP model folder for prompt adherence; empty: none")
    dino: str = Field(default="", description="DINOv2 model folder for identity; empty: the CLIP image tower")
    folders: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default=(), description="more places to look: ComfyUI models folders, HF caches"
    )
    allow_downloads: bool = Field(default=False, description="fetch a hub id that is not on this machine yet")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        default="auto", description="where the models work; auto = the GPU if there is one"
    )
    cuda_graphs: Literal["auto", "off"] = Field(
        default="auto", description="record a token of the VL model, a pass of the U-Net once and replay it (NVIDIA)"
    )


class _Guided(Settings):
    """How far the edit model is led by a prompt, and where."""

    silent = frozenset({"guided_above"})
    guidance: float = Field(default=3.0, ge=1.0, le=20.0, description="true CFG scale; 1 = off")
    guided_above: float = Field(
        default=0.0, ge=0, lt=1, description="noise (of 1) under which guidance is off, at half the cost"
    )
    negative_prompt: Words = Field(default=" ", description="what must not be drawn; read only with guidance above 1")


class SheetSettings(_Guided):
    """How the sheet is drawn."""

    width: int = Field(default=384, ge=96, le=2048, multiple_of=16, description="pixels of the sheet")
    height: int = Field(default=384, ge=96, le=2048, multiple_of=16, description="pixels of the sheet")
    steps: int = Field(default=16, ge=1, le=200, description="of the edit model; more is slower and cleaner")
    conditioning: Literal["latents", "vision"] = Field(
        default="latents",
        description="template as VAE latents too (diffusers), or vision tokens only (the origin's graph)",
    )
    candidates: int = Field(default=2, ge=1, le=16, description="at most this many sheets are drawn to find a good one")
    draft_steps: int = Field(default=0, ge=0, le=200, description="steps for candidates; 0 = same as steps")
    gate: bool = Field(default=True, description="check each sheet by numbers before it is accepted")
    ask_model: bool = Field(default=False, description="also ask the VL model which view each box shows")
    repair: bool = Field(default=False, description="redraw only a failing box by inpainting")
    rewrite: bool = Field(
        default=False,
        description="enrich the prompt first: by the VL model; of the embedded family, by making up what it leaves out",
    )
    problems = sheet_problems


class CropSettings(Settings):
    """How views are cut out of the sheet."""

    margin: float = Field(default=0.05, ge=0.0, le=0.3, description="share of the figure's height left around it")
    threshold: int = Field(default=24, ge=4, le=128, description="0-255: how far from the background a figure pixel is")
    bucket_area: int = Field(default=128 * 384, ge=64 * 64, le=2048 * 2048, description="pixels of a training image")
    bucket_step: int = Field(default=64, ge=8, le=128, multiple_of=8, description="bucket sides are multiples of this")
    upscale: bool = Field(default=True, description="enlarge a small figure to fill bucket_area; off: a smaller bucket")


class ExpandSettings(_Guided):
    """More views, drawn by the edit model from the sheet's own (docs/stages/expand.md)."""

    count: int = Field(default=0, ge=0, le=40, description="how many more views are asked for; 0 = none, no stage")
    kinds: tuple[Literal["close-up", "three-quarter", "expression", "pose", "background"], ...] = Field(
        default=("close-up", "three-quarter", "expression", "pose", "background"),
        min_length=1,
        description="taken in turn until there are `count`",
    )
    candidates: int = Field(default=2, ge=1, le=16, description="pictures drawn at most for each, until one is kept")
    margin: float = Field(
        default=0.0,
        ge=-0.5,
        le=0.5,
        description="how far (cosine) below the sheet's two least alike views a picture may fall; negative = stricter",
    )
    holdout: float = Field(
        default=0.2, ge=0, le=0.5, description="share of those kept that is never trained on, only validated with"
    )
    steps: int = Field(default=16, ge=1, le=200, description="of the edit model; 8 or fewer use the Lightning LoRA")


class CaptionSettings(Settings):
    """How views are captioned."""

    captioner: Literal["vl", "wd14"] = Field(
        default="vl", description="who writes them: the vision-language model, or a WD14 tagger (models.tagger)"
    )
    prune: bool = Field(default=True, description="drop the character's own traits so that they bind to the trigger")
    keep: tuple[Words, ...] = Field(default=(), description="tags never pruned")
    drop: tuple[Words, ...] = Field(default=(), description="tags always dropped")
    threshold: float = Field(default=0.35, gt=0, lt=1, description="WD14 general-tag probability")
    max_tags: int = Field(default=40, ge=0, le=120, description="at most this many tags a caption")
    problems = caption_problems


class TrainSettings(Settings):
    """How the adapter is trained. Below the least of alphas and rates float16, which adapters are kept in, holds zeros."""

    algorithm: Literal["locon", "lora", "loha", "lokr", "dora", "tlora"] = Field(
        default="locon", description="form of the adapter; locon = low-rank matrices on linear and convolution layers"
    )
    rank: int = Field(default=16, ge=1, le=128, description="width of the low-rank matrices; more can learn more")
    alpha: float = Field(default=8.0, ge=1e-4, le=256, description="the adapter's output is scaled by alpha / rank")
    conv_rank: int = Field(default=8, ge=0, le=128, description="0 = no convolution layers")
    conv_alpha: float = Field(default=4.0, ge=1e-4, le=256, description="as alpha, for convolution layers")
    dropout: float = Field(default=0.0, ge=0, le=0.99, description="share of the ranks left out of a step at random")
    steps: int = Field(default=300, ge=1, le=100_000, description="optimizer steps")
    batch: int = Field(default=0, ge=0, le=64, description="samples per step; 0 = all views of a bucket as equals")
    accumulate: int = Field(default=1, ge=1, le=64, description="gradient accumulation")
    optimizer: Literal["adafactor", "adamw", "adamw8bit", "prodigy", "prodigy-schedulefree"] = Field(
        default="adafactor", description="how weights follow the loss; all but the first two need a package of [gpu]"
    )
    learning_rate: float = Field(
        default=1e-3, ge=1e-9, le=10, description="size of a step; 1e-3, and 1.0 for prodigies"
    )
    schedule: Literal["constant", "cosine", "linear"] = Field(default="constant", description="fall of learning_rate")
    warmup: int = Field(default=0, ge=0, le=10_000, description="steps over which the learning rate rises from 0")
    weight_decay: float = Field(default=0.0, ge=0, le=1, description="pull of all weights towards 0; 0 = none")
    max_grad_norm: float = Field(
        default=1.0, ge=0, description="a longer gradient is shortened to this length; 0 = no clipping"
    )
    min_snr_gamma: float = Field(
        default=5.0, ge=0, description="keeps nearly clean pictures from ruling the loss (arXiv 2303.09556); 0 = off"
    )
    noise_offset: float = Field(
        default=0.0, ge=0, le=1, description="noise on whole channels, for darker darks and lighter lights; 0 = off"
    )
    precision: Literal["auto", "bf16", "fp16", "fp32"] = Field(
        default="auto", description="number format of the arithmetic; auto = bf16 where the GPU has it, fp32 on the CPU"
    )
    flips: Literal["auto", "on", "off"] = Field(default="auto", description="auto = off if an item is bound to a side")
    caption_dropout: float = Field(
        default=0.05, ge=0, le=1, description="share of samples trained with an empty caption, so that guidance works"
    )
    square: int = Field(
        default=0,
        ge=0,
        le=2048,
        multiple_of=8,
        description="without lessons, every second step shows views in such a square; 0 = off",
    )
    distill: int = Field(default=0, ge=0, le=256, description="pictures that the base draws for lessons; 0 = off")
    distill_batch: int = Field(default=3, ge=1, le=64, description="samples of a step that learns from them")
    distill_size: int = Field(default=1024, ge=64, le=2048, multiple_of=8, description="their sides in pixels")
    distill_emphasis: float = Field(default=1.0, ge=0, le=4, description="how much more of the description they show")
    masked_loss: float = Field(default=0.0, ge=0, le=1, description="0 = plain loss; 1 = background carries no loss")
    random_backgrounds: float = Field(default=0.0, ge=0, le=1, description="share of samples laid on a random colour")
    resample_latents: bool = Field(default=True, description="draw from the VAE posterior each step, not its mean")
    regularisation: str = Field(default="", description="folder of class images with .txt captions; empty = none")
    regularisation_weight: float = Field(
        default=1.0, ge=0, le=10, description="weight of a class image's loss beside a view's"
    )
    continue_from: str = Field(default="", description="adapter file to start from")
    checkpoints: int = Field(default=4, ge=1, le=40, description="how many adapters are kept along the way")
    save_state_every: int = Field(default=50, ge=1, le=10_000, description="steps between resumable states")
    validate_every: int = Field(default=50, ge=0, le=10_000, description="0 = only at checkpoints")
    sample_every: int = Field(default=0, ge=0, le=10_000, description="pictures at checkpoints (0) or every N steps")
    early_stop: int = Field(default=0, ge=0, le=100, description="stop after N validations without gain; 0 = never")
    budget_gib: float = Field(default=12.0, gt=0.5, le=200, description="GPU memory that training must fit in")
    checkpointing: Literal["auto", "none", "selective", "full"] = Field(
        default="auto",
        description="compute activations again instead of keeping them: slower, smaller; auto = as needed",
    )
    fp8_base: bool = Field(default=False, description="keep the frozen base in float8 (8 GB cards)")
    cuda_graph: Literal["auto", "off"] = Field(
        default="auto", description="record a whole step once and replay it (NVIDIA GPUs); off = step by step"
    )
    deterministic: bool = Field(
        default=False, description="deterministic GPU kernels: resumed = uninterrupted, bit for bit"
    )
    compile: bool = Field(default=False, description="regional torch.compile; pays back only on long runs")

    problems = training_problems

    @model_validator(mode="before")
    @classmethod
    def _prodigy_has_a_rate_of_its_own(cls, values: Any) -> Any:
        if isinstance(values, dict) and "learning_rate" not in values and is_prodigy(values.get("optimizer")):
            return {**values, "learning_rate": 1.0}
        return values


class SweepSettings(Settings):
    """Which checkpoints × strengths × prompts × seeds are tried."""

    silent = frozenset({"solver", "guided_above", "guided_below"})
    design: Literal["race", "grid"] = Field(
        default="race", description="race: pictures go to the cells that may be the best; grid: every cell, every seed"
    )
    pictures: int = Field(default=56, ge=2, le=100_000, description="race: at most this many, strength 0's included")
    strengths: tuple[Annotated[float, Field(ge=0, le=2)], ...] = Field(
        default=(0.4, 0.6, 0.8, 1.0, 1.2, 1.4),
        description="tried on the checkpoints; 0, the base model, is always tried too",
    )
    checkpoints: int = Field(default=3, ge=1, le=40, description="how many trained checkpoints, evenly spread")
    prompts: tuple[Words, ...] = Field(default=(), description="with {subject}; empty: built-in views, scenes, poses")
    prompt_set: Literal["quick", "full"] = Field(
        default="quick", description="which built-in set: 4 prompts for two CPU cores, or 10 for a GPU"
    )
    seeds: int = Field(
        default=4, ge=1, le=64, description="paired: the same in all cells; race: at most this many in one"
    )
    width: int = Field(default=256, ge=64, le=2048, multiple_of=8, description="pixels of each picture")
    height: int = Field(default=256, ge=64, le=2048, multiple_of=8, description="pixels of each picture")
    steps: int = Field(default=12, ge=1, le=200, description="denoising steps of each picture")
    solver: Literal["euler", "dpm++"] = Field(default="euler", description="dpm++: second order, for fewer steps")
    guidance: float = Field(default=4.0, ge=1.0, le=30.0, description="CFG scale of each picture; 1 = off")
    guided_above: float = Field(default=0.0, ge=0, description="noise (sigma) under which guidance is off")
    guided_below: float = Field(default=0.0, ge=0, description="noise (sigma) over which guidance is off; 0 = none")
    merge: bool = Field(default=True, description="adapters are merged into the weights; false: hooked beside, slower")
    traits: Literal["rounds", "end", "off"] = Field(
        default="rounds",
        description="described traits are read off the pictures: in every round, once all are drawn, never",
    )
    adherence_floor: float = Field(
        default=0.9, ge=0, le=1, description="a pick keeps so much of strength 0's adherence"
    )
    diversity_floor: float = Field(
        default=0.5, ge=0, le=1, description="a pick keeps this share of strength 0's variety between seeds"
    )
    problems = sweep_problems

    @model_validator(mode="after")
    def _each_is_tried_once(self) -> SweepSettings:
        refuse_twice("strengths", [f"{one:g}" for one in self.strengths])
        refuse_twice("prompts", [" ".join(prompt.split()) for prompt in self.prompts])
        return self


class Profile(Settings):
    """Models and settings for a kind of machine."""

    name: Line = Field(min_length=1, max_length=100, description="what the profile is called in reports and MLflow")
    description: Words = Field(default="", description="one line for `charengine profiles`")
    budget_gib: float = Field(default=12.0, gt=0.5, le=200, description="GPU memory every stage must fit in")
    retrain: int = Field(
        default=0, ge=0, le=4, description="trainings more, at most, where the sweep's verdict asks for one"
    )
    models: ModelSettings = ModelSettings()
    sheet: SheetSettings = SheetSettings()
    crop: CropSettings = CropSettings()
    expand: ExpandSettings = ExpandSettings()
    caption: CaptionSettings = CaptionSettings()
    train: TrainSettings = TrainSettings()
    sweep: SweepSettings = SweepSettings()

    @model_validator(mode="before")
    @classmethod
    def _one_budget(cls, data: Any) -> Any:
        """`budget_gib` is what training must fit in too, unless its section says less."""
        if not isinstance(data, dict) or not isinstance(data.get("train", {}), dict):
            return data
        budget = data.get("budget_gib", cls.model_fields["budget_gib"].default)
        return {**data, "train": {"budget_gib": budget, **data.get("train", {})}}

    @model_validator(mode="after")
    def _training_fits_the_budget(self) -> Profile:
        if self.train.budget_gib > self.budget_gib:
            raise ValueError(
                f"train.budget_gib is {self.train.budget_gib:g} and budget_gib, which every stage must fit in, "
                f"{self.budget_gib:g}: leave train.budget_gib out, or make it at most that"
            )
        return self

    @model_serializer(mode="wrap")
    def _without_what_is_off(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A stage that is off leaves no trace in configs, recipes and keys: they are what they were before there was one."""
        is_on = {"expand": self.expand.count > 0, "retrain": self.retrain > 0}
        return {name: value for name, value in write(self).items() if is_on.get(name, True)}
