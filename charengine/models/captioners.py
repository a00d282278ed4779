"""`Captioner`: Qwen2.5-VL, asked for a fixed JSON form; and the embedded family's, trained to answer in tags."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from PIL import Image
from pydantic import BaseModel, ValidationError, field_validator

from charengine.models.choosing import choose
from charengine.models.decoding import GreedyDecoder, is_recordable, rules_of
from charengine.models.loading import Loaded, chunks, release_memory
from charengine.models.protocols import Description
from charengine.models.qwen_edit import over_white
from charengine.models.qwen_parts import QwenVLParts, load_text_encoder

log = logging.getLogger(__name__)

Filled = TypeVar("Filled", bound=BaseModel)
Answer = TypeVar("Answer")
Inputs = dict[str, torch.Tensor]

MAX_PIXELS = 1024 * 28 * 28  # of a picture shown to Qwen2.5-VL: 1,024 vision tokens
MAX_ROWS = 8  # pictures answered about at once
TEXT_TOKENS = 320  # of the longest question about a picture, its template included
JSON_TOKENS, TAG_TOKENS = 400, 120  # of the longest answers
VIEW_PHRASES = {"front": "front view", "side": "side view", "back": "back view", "three-quarter": "three-quarter view"}

QUESTION = """Describe the{noun} in this picture. Answer with one JSON object and nothing else:
{{"view": "front" | "side" | "back" | "three-quarter",
 "framing": "full body" | "cowboy shot" | "upper body" | "portrait" | "close-up",
 "pose": "...", "expression": "... or none if no face is seen", "hair": "colour, length, style",
 "clothing": ["one garment with its colour", ...],
 "background": "...",
 "asymmetric_items": [{{"item": "something worn or held on one side only", "side": "left" | "right"}}, ...]}}
"left" and "right" are the character's own sides. Use two to five plain words a value; say only what you see."""
REMINDER = "\nYour last answer could not be read. Write the JSON object only, with exactly these keys."
TAG_QUESTION = "List what you see of the{noun} as short comma-separated tags, and nothing else."

CHAT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n{question}<|im_end|>\n"
    "<|im_start|>assistant\n"
)
BEFORE, BEHIND = CHAT.split("{question}")
PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"


class AsymmetricItem(BaseModel):
    """Something on one side only; `side` is the character's own."""

    item: str
    side: Literal["left", "right"]


class Sighting(BaseModel):
    """What the model is asked to fill in."""

    view: Literal["front", "side", "back", "three-quarter"]
    framing: str = ""
    pose: str = ""
    expression: str = ""
    hair: str = ""
    clothing: tuple[str, ...] = ()
    background: str = ""
    asymmetric_items: tuple[AsymmetricItem, ...] = ()

    @field_validator("view", mode="before")
    @classmethod
    def _view_in_one_word(cls, value: Any) -> Any:
        return value.lower().removesuffix(" view").strip() if isinstance(value, str) else value

    def description(self, raw: str) -> Description:
        """Tags in caption order, and the facts by name."""
        single = {name: getattr(self, name) for name in ("framing", "pose", "expression", "hair", "background")}
        facts = {name: clean for name, value in single.items() if (clean := _clean(value))}
        order = [VIEW_PHRASES[self.view], facts.get("framing"), facts.get("pose"), facts.get("expression")]
        order += [facts.get("hair"), *map(_clean, self.clothing)]
        order += [_clean(f"{found.side} {found.item}") for found in self.asymmetric_items]
        order.append(facts.get("background"))
        return Description(tuple(dict.fromkeys(tag for tag in order if tag)), raw, {"view": self.view, **facts})


class QwenCaptioner:
    """`Captioner` and judge on Qwen2.5-VL, greedy, so that the same picture always gets the same answer.

    Args:
        parts: where model and processor come from; nothing is loaded before it is needed.
        device: where inputs live.
        fingerprint: digest of the weights, for cache keys.
        max_pixels: larger pictures are shown smaller.
        loaded: shared with the sheet editor so that one set of weights serves both.
        room: bytes of GPU memory left to activations; decides how many pictures are answered about at once.
        recorded: tokens as CUDA graphs (`models.cuda_graphs`).
    """

    def __init__(
        self,
        parts: QwenVLParts,
        device: torch.device,
        fingerprint: str,
        *,
        max_pixels: int = MAX_PIXELS,
        loaded: Loaded | None = None,
        room: int | None = None,
        recorded: bool = True,
    ) -> None:
        self.parts, self.device, self.fingerprint = parts, device, fingerprint
        self.max_pixels, self.room, self.recorded = max_pixels, room, recorded
        self._loaded = loaded or Loaded()

    def describe(self, image: Image.Image, hint: str = "") -> Description:
        """Tags of one picture: a JSON answer, asked for twice if need be, else plain tags with a logged warning.

        Args:
            image: any size or mode.
            hint: the class noun.
        """
        return self.describe_all([image], hint)[0]

    def describe_all(self, images: Sequence[Image.Image], hint: str = "") -> list[Description]:
        """What `describe` says of each picture, asked about all at once; unreadable answers are asked again one by one."""
        question = QUESTION.format(noun=_noun(hint))
        answers = self.ask_all(images, question, max_tokens=JSON_TOKENS)
        return [self._read(image, hint, raw) for image, raw in zip(images, answers, strict=True)]

    def _read(self, image: Image.Image, hint: str, raw: str) -> Description:
        """The first answer's description if it can be read, else that of a second, else plain tags."""
        sighting = read_sighting(raw)
        if sighting is None:
            raw = self.ask(image, QUESTION.format(noun=_noun(hint)) + REMINDER, max_tokens=JSON_TOKENS)
            sighting = read_sighting(raw)
        if sighting is not None:
            return sighting.description(raw)
        log.warning("captioner answered with no readable JSON (%.200r); falling back to plain tags", raw)
        raw = self.ask(image, TAG_QUESTION.format(noun=_noun(hint)), max_tokens=TAG_TOKENS)
        return Description(split_tags(raw), raw)

    def ask(self, image: Image.Image, question: str, *, max_tokens: int = 64) -> str:
        """The model's answer to a free question about one picture."""
        return self.ask_all([image], question, max_tokens=max_tokens)[0]

    def ask_all(self, images: Sequence[Image.Image], question: str, *, max_tokens: int = 64) -> list[str]:
        """The model's answers to one question about each picture, as many pictures at once as the memory plan has room for.

        A token takes about as long for several pictures as for one: each unpacks and reads all weights.
        """
        model, tokens = load_text_encoder(self._loaded, self.parts), self.max_pixels // 28**2 + TEXT_TOKENS
        rows = rows_that_fit(model, tokens, max_tokens, self.room)
        text = CHAT.format(question=PICTURE + question)
        return in_batches(images, rows, partial(self._prepare, text), partial(self._answer, max_tokens=max_tokens))

    def _prepare(self, text: str, images: list[Image.Image]) -> Inputs:
        """The same text about each picture."""
        processor = self._loaded.get("processor", self.parts.processor)
        shown = [shrink(over_white(image), self.max_pixels) for image in images]
        text_of_each = [text] * len(shown)
        return dict(processor(text=text_of_each, images=shown, padding=True, padding_side="left", return_tensors="pt"))

    def _answer(self, inputs: Inputs, max_tokens: int) -> list[str]:
        """One answer a picture."""
        model = load_text_encoder(self._loaded, self.parts)
        processor = self._loaded.get("processor", self.parts.processor)
        return generate(model, processor, inputs, self.device, max_tokens, recorded=self.recorded)

    def choose_all(
        self, images: Sequence[Image.Image], common: str, questions: Sequence[str], words: Sequence[str]
    ) -> list[list[str]]:
        """Which of a few words answers each of several questions about each picture; one forward for all of them.

        Args:
            images: any size or mode.
            common: said before each question.
            questions: each is asked as if it stood alone.
            words: the answers allowed, in small letters.

        Returns:
            A word for each picture and question.
        """
        model = load_text_encoder(self._loaded, self.parts)
        processor = self._loaded.get("processor", self.parts.processor)
        behind = [_tokens(processor, question + BEHIND) for question in questions]
        begins = beginnings(processor, words)
        tokens = self.max_pixels // 28**2 + len(_tokens(processor, BEFORE + common)) + sum(map(len, behind))

        def answer(inputs: Inputs) -> list[list[str]]:
            placed = {name: value.to(self.device) for name, value in inputs.items()}
            best = choose(load_text_encoder(self._loaded, self.parts), placed, behind, begins).argmax(-1)
            return [[words[index] for index in row] for row in best.tolist()]

        rows = rows_that_fit(model, tokens, 0, self.room)
        return in_batches(images, rows, partial(self._prepare, BEFORE + PICTURE + common), answer)

    def step_aside(self) -> None:
        """Off the GPU; host memory keeps the weights where the memory plan says so."""
        self._loaded.free("text_encoder")

    def unload(self) -> None:
        """Free all memory the weights take."""
        self._loaded.forget("text_encoder", "processor")


class EmbeddedCaptioner:
    """`Captioner` of the embedded family, whose Qwen2.5-VL was trained to answer one question in canonical tags.

    Args:
        parts: where model and processor come from; nothing is loaded before it is needed.
        device: where inputs live.
        fingerprint: digest of the weights, for cache keys.
        parse: reads canonical tags as facts (`grammar.parse_tags`).
        loaded: shared with the sheet editor so that one set of weights serves both.
    """

    def __init__(
        self,
        parts: QwenVLParts,
        device: torch.device,
        fingerprint: str,
        *,
        parse: Callable[[str], dict[str, str]],
        loaded: Loaded | None = None,
    ) -> None:
        self.parts, self.device, self.fingerprint = parts, device, fingerprint
        self._parse = parse
        self._loaded = loaded or Loaded()

    def describe(self, image: Image.Image, hint: str = "") -> Description:
        """Tags of one picture; `hint` is not used, the model names the species itself."""
        return self.describe_all([image], hint)[0]

    def describe_all(self, images: Sequence[Image.Image], hint: str = "") -> list[Description]:
        """What `describe` says of each picture, asked about all at once."""
        answers = in_batches(images, MAX_ROWS, self._prepare, self._answer)
        return [Description(split_tags(raw), raw, self._parse(raw)) for raw in answers]

    def _prepare(self, images: list[Image.Image]) -> Inputs:
        from charengine.models.processor import caption_inputs

        processor = self._loaded.get("processor", self.parts.processor)
        return caption_inputs(processor, [over_white(image) for image in images])

    def _answer(self, inputs: Inputs) -> list[str]:
        model = load_text_encoder(self._loaded, self.parts)
        processor = self._loaded.get("processor", self.parts.processor)
        return generate(model, processor, inputs, self.device, TAG_TOKENS)

    def unload(self) -> None:
        """Free all memory the weights take."""
        self._loaded.forget("text_encoder", "processor")


@torch.no_grad()
def generate(
    model: Any, processor: Any, inputs: dict[str, Any], device: torch.device, max_tokens: int, *, recorded: bool = True
) -> list[str]:
    """Greedy answers to prepared inputs padded on the left, without the prompt and special tokens.

    Args:
        model: Qwen2_5_VLForConditionalGeneration.
        processor: its own.
        inputs: what it takes.
        device: where it computes.
        max_tokens: of the longest answer.
        recorded: a token is one CUDA graph, where there are such and the model can be recorded.
    """
    placed = {name: value.to(device) for name, value in inputs.items()}
    rules = rules_of(model) if recorded and device.type == "cuda" and is_recordable(model) else None
    if rules is not None:
        answers = GreedyDecoder(model, placed, max_tokens, rules).run()
    else:
        output = model.generate(
            **placed, do_sample=False, temperature=None, top_p=None, top_k=None, max_new_tokens=max_tokens
        )
        answers = output[:, placed["input_ids"].shape[1] :]
    return [str(text).strip() for text in processor.tokenizer.batch_decode(answers, skip_special_tokens=True)]


def beginnings(processor: Any, words: Sequence[str]) -> list[list[int]]:
    """The tokens that an answer of each word may begin with, written in small letters or not, behind a space or not.

    What two of the words may begin with says nothing and is left out.
    """
    written = [{form for own in (word, word.capitalize()) for form in (own, f" {own}")} for word in words]
    first = [{_tokens(processor, form)[0] for form in forms} for forms in written]
    return [sorted(own - set().union(*first[:i], *first[i + 1 :])) for i, own in enumerate(first)]


def in_batches(
    images: Sequence[Image.Image],
    rows: int,
    prepare: Callable[[list[Image.Image]], Inputs],
    answer: Callable[[Inputs], list[Answer]],
) -> list[Answer]:
    """Answers about at most `rows` pictures at a time; one at a time where more turn out not to fit the GPU's memory.

    Args:
        images: any sizes.
        rows: at once.
        prepare: inputs of some of them, on the CPU; called on a thread while others are answered about.
        answer: one for each.
    """
    answers: list[Answer] = []
    for few, inputs in _ahead([list(images[part]) for part in chunks(len(images), rows)], prepare):
        try:
            answers += answer(inputs)
            continue
        except torch.cuda.OutOfMemoryError:
            if len(few) == 1:
                raise
        log.warning("out of GPU memory asking about %d pictures at once: asking about one at a time", len(few))
        release_memory()
        for image in few:
            answers += answer(prepare([image]))
    return answers


def _ahead(
    batches: Sequence[list[Image.Image]], prepare: Callable[[list[Image.Image]], Inputs]
) -> Iterator[tuple[list[Image.Image], Inputs]]:
    """Each batch with its inputs, those of the next one being prepared meanwhile: a fifth of a second for a large picture."""
    with ThreadPoolExecutor(1, thread_name_prefix="prepare") as pool:
        coming = pool.submit(prepare, batches[0]) if batches else None
        for number, batch in enumerate(batches, 1):
            assert coming is not None
            inputs = coming.result()
            coming = pool.submit(prepare, batches[number]) if number < len(batches) else None
            yield batch, inputs


def rows_that_fit(model: Any, prompt: int, answer: int, room: int | None) -> int:
    """How many pictures Qwen2.5-VL can be asked about at once.

    Args:
        model: its configuration is looked at.
        prompt: tokens of the question and the picture.
        answer: tokens of the longest answer.
        room: bytes for activations; None = no limit.

    Returns:
        1 to `MAX_ROWS`; 1 even where that does not fit, for then nothing does.
    """
    if room is None:
        return MAX_ROWS
    text, vision, size = model.config.text_config, model.config.vision_config, model.dtype.itemsize
    head = text.hidden_size // text.num_attention_heads
    cache = 2 * text.num_hidden_layers * text.num_key_value_heads * head * (prompt + answer)
    # live at the peak of a block: three copies of the MLP's width, six of the model's; a vision token is four patches
    reading = prompt * (3 * text.intermediate_size + 6 * text.hidden_size)
    seeing = 4 * prompt * (3 * vision.intermediate_size + 6 * vision.hidden_size)
    unpacked = text.hidden_size * text.intermediate_size
    return int(max(1, min(MAX_ROWS, (room // size - unpacked) // max(cache + reading, seeing))))


def read_sighting(raw: str) -> Sighting | None:
    """The first JSON object in an answer, or None if there is none of the right form."""
    return read_object(raw, Sighting)


def read_object(raw: str, kind: type[Filled]) -> Filled | None:
    """The first JSON object in an answer as a `kind`, or None if there is none of the right form."""
    start = raw.find("{")
    if start < 0:
        return None
    try:
        value, _ = json.JSONDecoder().raw_decode(raw[start:])
        return kind.model_validate(value)
    except (json.JSONDecodeError, ValidationError):
        return None


def split_tags(text: str) -> tuple[str, ...]:
    """Comma- or line-separated tags, cleaned, each once."""
    tags = (_clean(tag) for line in text.splitlines() for tag in line.split(","))
    return tuple(dict.fromkeys(tag for tag in tags if tag))


def shrink(image: Image.Image, max_pixels: int) -> Image.Image:
    """The image with at most `max_pixels`, its shape kept; small ones are left as they are."""
    scale = math.sqrt(max_pixels / (image.width * image.height))
    if scale >= 1:
        return image
    size = max(1, int(image.width * scale)), max(1, int(image.height * scale))
    return image.resize(size, Image.Resampling.LANCZOS)


def _clean(tag: str) -> str:
    """Lower case, without quotes, brackets, bullets and full stops; empty for "none" and the like."""
    text = " ".join(tag.lower().replace(",", " ").split()).strip(" .;:*-_\"'`{}[]")
    return "" if text in ("none", "n/a", "unknown", "not visible", "null") else text


def _tokens(processor: Any, text: str) -> list[int]:
    found: list[int] = processor.tokenizer(text, add_special_tokens=False).input_ids
    return found


def _noun(hint: str) -> str:
    return f" {hint}" if hint else " character"
