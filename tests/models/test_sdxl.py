"""The SDXL wrapper computes what StableDiffusionXLPipeline computes, and keeps its promises to the stages."""

from __future__ import annotations

import gc
import logging
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image

from charengine.errors import BadInput
from charengine.models.loading import noise_from_seeds
from charengine.models.prediction import GUIDANCE_RESCALE, Prediction
from charengine.models.sdxl import SDXL
from charengine.models.sdxl_parts import SDXLFolder
from charengine.models.usage import Usage
from charengine.stages.train.step import predict

CPU = torch.device("cpu")


@pytest.fixture
def sdxl(sdxl_folder: Path) -> SDXL:
    return SDXL(SDXLFolder(sdxl_folder, CPU, torch.float32), CPU, torch.float32, 64 * 64, "tiny")


@pytest.fixture(scope="module")
def pipeline(sdxl_folder: Path) -> StableDiffusionXLPipeline:
    loaded = StableDiffusionXLPipeline.from_pretrained(sdxl_folder, local_files_only=True, add_watermarker=False)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def as_array(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=np.int16)


def test_prompts_are_encoded_as_the_stock_pipeline_encodes_them(sdxl: SDXL, pipeline: StableDiffusionXLPipeline):
    prompts = ["an orc woman", "a robot with a lantern"]
    ours = sdxl.encode_prompts(prompts)
    embeds, _, pooled, _ = pipeline.encode_prompt(prompts, do_classifier_free_guidance=False)
    assert ours.embeds.shape == (2, 77, 64)
    assert torch.equal(ours.embeds, embeds)
    assert torch.equal(ours.pooled, pooled)


def test_what_clip_cannot_read_is_cut_with_a_warning_that_quotes_it(sdxl: SDXL, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        sdxl.encode_prompts(["a" * 75])
        assert not caplog.records
        sdxl.encode_prompts(["a" * 75 + "xyz"])
    assert "CLIP reads 77" in caplog.text
    assert "xyz" in caplog.text


def test_tokens_are_counted_without_start_and_end(sdxl: SDXL):
    assert sdxl.count_tokens("") == 0
    assert sdxl.count_tokens("orc") == 3


def test_samples_equal_the_stock_pipeline_on_the_same_noise(sdxl: SDXL, pipeline: StableDiffusionXLPipeline):
    prompts, negative = sdxl.encode_prompts(["a robot", "an elf"]), sdxl.encode_prompts(["blurry"])
    ours = sdxl.sample(prompts, negative, seeds=[7, 8], size=(48, 64), steps=4, guidance=3.0)
    theirs = pipeline(
        prompt_embeds=prompts.embeds,
        pooled_prompt_embeds=prompts.pooled,
        negative_prompt_embeds=negative.embeds.repeat(2, 1, 1),
        negative_pooled_prompt_embeds=negative.pooled.repeat(2, 1),
        latents=noise_from_seeds([7, 8], (4, 8, 6)),
        width=48,
        height=64,
        num_inference_steps=4,
        guidance_scale=3.0,
    ).images
    for our, their in zip(ours, theirs, strict=True):
        assert our.size == (48, 64)
        assert np.abs(as_array(our) - as_array(their)).max() <= 1
    assert np.abs(as_array(ours[0]) - as_array(ours[1])).max() > 5


def test_without_guidance_the_negative_prompt_has_no_say(sdxl: SDXL):
    prompts = sdxl.encode_prompts(["a robot"])
    kwargs = {"seeds": [1], "size": (64, 64), "steps": 2, "guidance": 1.0}
    one = sdxl.sample(prompts, sdxl.encode_prompts(["red"]), **kwargs)
    other = sdxl.sample(prompts, sdxl.encode_prompts(["blue"]), **kwargs)
    assert np.array_equal(as_array(one[0]), as_array(other[0]))


def test_a_picture_depends_on_its_seed_and_not_on_its_batch(sdxl: SDXL):
    prompts, negative = sdxl.encode_prompts(["a robot"] * 3), sdxl.encode_prompts([""])
    together = sdxl.sample(prompts, negative, seeds=[1, 2, 1], size=(64, 64), steps=3, guidance=3.0)
    sdxl.pixels_per_pass = 64 * 64
    apart = sdxl.sample(prompts, negative, seeds=[1, 2, 1], size=(64, 64), steps=3, guidance=3.0)
    for left, right in zip(together, apart, strict=True):
        assert np.abs(as_array(left) - as_array(right)).max() <= 1
    assert np.abs(as_array(apart[0]) - as_array(apart[1])).max() > 5
    assert np.array_equal(as_array(apart[0]), as_array(apart[2]))


@pytest.mark.parametrize("seeds", [[1, 2, 3, 4, 5], [1]])
def test_where_memory_runs_out_the_same_pictures_are_drawn_by_fewer_at_once(
    sdxl: SDXL, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, seeds: list[int]
):
    prompts, negative, rows = sdxl.encode_prompts(["a robot"] * len(seeds)), sdxl.encode_prompts([""]), []
    how = {"seeds": seeds, "size": (64, 64), "steps": 2, "guidance": 3.0}
    wanted, traced = sdxl.sample(prompts, negative, **how), sdxl.trace(prompts, prompts, negative, **how)
    unet, forward = sdxl.unet(), sdxl.unet().forward

    def small(inputs: torch.Tensor, *args: object, **kwargs: object) -> object:
        rows.append(len(inputs))
        if len(inputs) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(inputs, *args, **kwargs)

    monkeypatch.setattr(unet, "forward", small)
    most = 5
    for left, right in zip(wanted, sdxl.sample(prompts, negative, **how), strict=True):
        assert np.abs(as_array(left) - as_array(right)).max() <= 1
    found = sdxl.trace(prompts, prompts, negative, **how)
    torch.testing.assert_close(found.prompted, traced.prompted, atol=1e-5, rtol=1e-4)
    assert (rows[0] == 10) is ("out of memory with 5 pictures at once: from here on 2" in caplog.text)
    rows.clear()
    sdxl.sample(prompts, negative, **how)
    assert max(rows) <= most  # what did not fit once is not tried again
    most = 1
    with pytest.raises(torch.OutOfMemoryError):
        sdxl.sample(prompts, negative, **how)


def test_a_second_order_solver_draws_as_the_stock_pipeline_does_with_its_scheduler(
    sdxl: SDXL, pipeline: StableDiffusionXLPipeline
):
    from diffusers import DPMSolverMultistepScheduler

    prompts, negative = sdxl.encode_prompts(["a robot"]), sdxl.encode_prompts(["blurry"])
    kwargs = {"seeds": [7], "size": (48, 64), "guidance": 3.0}
    ours = sdxl.sample(prompts, negative, **kwargs, steps=5, solver="dpm++")[0]
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(
        pipeline.scheduler.config, timestep_spacing="trailing", algorithm_type="dpmsolver++", solver_order=2
    )
    theirs = pipeline(
        prompt_embeds=prompts.embeds, pooled_prompt_embeds=prompts.pooled, negative_prompt_embeds=negative.embeds,
        negative_pooled_prompt_embeds=negative.pooled, latents=noise_from_seeds([7], (4, 8, 6)), width=48, height=64,
        num_inference_steps=5, guidance_scale=3.0,
    ).images[0]  # fmt: skip
    assert np.abs(as_array(ours) - as_array(theirs)).max() <= 1
    assert np.abs(as_array(ours) - as_array(sdxl.sample(prompts, negative, **kwargs, steps=5)[0])).max() > 1


def test_a_checkpoint_that_was_made_for_few_steps_keeps_its_solver(sdxl_folder: Path):
    from diffusers import EulerDiscreteScheduler

    zero, fast = velocity_model(sdxl_folder, True), velocity_model(sdxl_folder, False)
    fast.usage = Usage(most_steps=4, most_guidance=1.0, distilled="Turbo")
    for model in (zero, fast):
        assert isinstance(model._sampling_scheduler("dpm++"), EulerDiscreteScheduler)


def test_outside_of_an_interval_of_noise_a_step_is_one_row_a_picture(sdxl: SDXL):
    prompts, negative = sdxl.encode_prompts(["a robot", "an elf"]), sdxl.encode_prompts(["blurry"])
    kwargs = {"seeds": [7, 8], "size": (48, 64), "steps": 4, "guidance": 3.0}
    rows: list[int] = []
    hook = sdxl.unet().register_forward_pre_hook(lambda _unet, given: rows.append(len(given[0])))
    everywhere = sdxl.sample(prompts, negative, **kwargs)
    assert rows == [4] * 4
    rows.clear()
    scheduler = sdxl._sampling_scheduler()
    scheduler.set_timesteps(4)
    first, second, third, _, _ = scheduler.sigmas.tolist()
    middle = sdxl.sample(prompts, negative, **kwargs, guided=((third + second) / 2, (first + second) / 2))
    assert rows == [2, 4, 2, 2]
    nowhere = sdxl.sample(prompts, negative, **kwargs, guided=(first, 2 * first))
    hook.remove()
    unguided = sdxl.sample(prompts, negative, **{**kwargs, "guidance": 1.0})
    for one, two, three, four in zip(everywhere, middle, nowhere, unguided, strict=True):
        assert np.array_equal(as_array(three), as_array(four))
        assert np.abs(as_array(one) - as_array(two)).max() > 0 and np.abs(as_array(two) - as_array(four)).max() > 0


def test_a_trace_is_every_pass_of_drawing_the_same_picture(sdxl: SDXL):
    prompts, beside = sdxl.encode_prompts(["a robot", "an elf"]), sdxl.encode_prompts(["a toy", "a tree"])
    negative = sdxl.encode_prompts(["blurry"])
    kwargs = {"seeds": [7, 8], "size": (48, 64), "steps": 3, "guidance": 3.0}
    trace = sdxl.trace(prompts, beside, negative, **kwargs)
    assert trace.noisy.shape == trace.prompted.shape == (3, 2, 4, 8, 6)
    for text, found in ((prompts, trace.prompted), (beside, trace.beside), (negative, trace.negative)):
        for step, t in enumerate(trace.timesteps):
            rows = tuple(one.expand(2, *one.shape[1:]) for one in sdxl._said(text, (48, 64)))
            with torch.no_grad():
                wanted = predict(sdxl.unet(), trace.noisy[step], t.expand(2), *rows)
            torch.testing.assert_close(found[step], wanted, atol=1e-5, rtol=1e-4)
    unguided = trace.negative[-1] + 3.0 * (trace.prompted[-1] - trace.negative[-1])
    sigma = sdxl._sampling_scheduler()
    sigma.set_timesteps(3)
    last = float(sigma.sigmas[-2])
    clean = trace.noisy[-1] * (1 + last**2) ** 0.5 - last * unguided
    drawn = sdxl.sample(prompts, negative, **kwargs)
    for ours, theirs in zip(sdxl.decode(clean), drawn, strict=True):
        assert np.abs(as_array(ours) - as_array(theirs)).max() <= 1


def test_a_trace_does_not_depend_on_its_batch_and_without_guidance_nothing_is_negative(sdxl: SDXL):
    prompts, beside = sdxl.encode_prompts(["a robot", "an elf"]), sdxl.encode_prompts(["a toy", "a tree"])
    kwargs = {"seeds": [7, 8], "size": (64, 64), "steps": 2, "guidance": 1.0}
    together = sdxl.trace(prompts, beside, sdxl.encode_prompts(["blurry"]), **kwargs)
    assert torch.equal(together.negative, together.beside)
    sdxl.pixels_per_pass = 64 * 64
    passes: list[tuple[int, int]] = []
    on_pass = lambda *one: passes.append(one)  # noqa: E731
    apart = sdxl.trace(prompts, beside, sdxl.encode_prompts(["ugly"]), **kwargs, on_pass=on_pass)
    assert passes == [(1, 4), (2, 4), (3, 4), (4, 4)]
    torch.testing.assert_close(apart.prompted, together.prompted, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(apart.noisy, together.noisy, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("part", "called"), [("unet", "U-Net"), ("vae", "VAE")])
def test_a_picture_that_a_model_answers_with_no_numbers_is_black_and_said_so(
    sdxl: SDXL, caplog: pytest.LogCaptureFixture, part: str, called: str
):
    def drawn() -> list[Image.Image]:
        text = sdxl.encode_prompts(["an orc woman", "a robot"])
        return sdxl.sample(text, sdxl.encode_prompts([""]), seeds=[1, 2], size=(64, 64), steps=2, guidance=3.0)

    with caplog.at_level(logging.WARNING):
        assert all(image.getbbox() for image in drawn()) and not caplog.records
        broken = sdxl.unet().conv_out if part == "unet" else sdxl._vae().vae.decoder.conv_out
        with torch.no_grad():
            broken.weight.fill_(float("nan"))
        assert [image.getbbox() for image in drawn()] == [None, None]
    assert f"2 of 2 pictures are black: the {called} answered with no numbers (NaN)" in caplog.text
    assert "get its file again" in caplog.text


def test_latents_are_the_scaled_posterior_and_decode_back(sdxl: SDXL, pipeline: StableDiffusionXLPipeline):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    ours = sdxl.encode_images([image, image])
    tensor = pipeline.image_processor.preprocess(image)
    with torch.no_grad():
        posterior = pipeline.vae.encode(tensor).latent_dist
        decoded = pipeline.image_processor.postprocess(pipeline.vae.decode(posterior.mean).sample)[0]
    assert ours.mean.shape == (2, 4, 8, 6)
    torch.testing.assert_close(ours.mean[0], posterior.mean[0] * 0.13025, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(ours.std[1], posterior.std[0] * 0.13025, atol=1e-6, rtol=1e-4)
    assert np.abs(as_array(sdxl.decode(ours.mean)[0]) - as_array(decoded)).max() <= 1


def test_images_that_cannot_be_encoded_are_refused_by_size(sdxl: SDXL):
    with pytest.raises(BadInput, match=r"\(64, 64\), \(64, 72\)"):
        sdxl.encode_images([Image.new("RGB", (64, 64)), Image.new("RGB", (64, 72))])
    with pytest.raises(BadInput, match="60x64: both sides must be multiples of 8"):
        sdxl.encode_images([Image.new("RGB", (60, 64))])
    text = sdxl.encode_prompts(["a"])
    with pytest.raises(BadInput, match="multiples of 8"):
        sdxl.sample(text, text, seeds=[1], size=(64, 60), steps=1, guidance=1)


def test_the_unet_is_frozen_and_the_noise_schedule_is_sdxls(sdxl: SDXL):
    unet = sdxl.unet()
    assert not unet.training
    assert not any(parameter.requires_grad for parameter in unet.parameters())
    assert unet is sdxl.unet()
    alphas = sdxl.alphas_cumprod()
    assert alphas.shape == (1000,)
    assert alphas.dtype == torch.float32
    assert alphas[0].item() == pytest.approx(0.99915, abs=1e-5)
    assert alphas[-1].item() == pytest.approx(0.00466, abs=1e-5)


def velocity_model(folder: Path, zero_terminal_snr: bool) -> SDXL:
    prediction = Prediction("v_prediction", zero_terminal_snr)
    return SDXL(SDXLFolder(folder, CPU, torch.float32), CPU, torch.float32, 4096, "v", prediction=prediction)


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_a_v_prediction_model_samples_as_the_stock_pipeline_does(sdxl_folder: Path, zero_terminal_snr: bool):
    from diffusers import StableDiffusionXLPipeline

    model = velocity_model(sdxl_folder, zero_terminal_snr)
    pipe = StableDiffusionXLPipeline.from_pretrained(sdxl_folder)
    changes = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": zero_terminal_snr}
    changes |= {"timestep_spacing": "trailing"} if zero_terminal_snr else {}
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, **changes)
    pipe.set_progress_bar_config(disable=True)
    text, nothing = model.encode_prompts(["an orc"]), model.encode_prompts(["bad"])
    drawn = model.sample(text, nothing, seeds=[4], size=(64, 64), steps=4, guidance=5.0)[0]
    expected = pipe(
        prompt_embeds=text.embeds,
        pooled_prompt_embeds=text.pooled,
        negative_prompt_embeds=nothing.embeds,
        negative_pooled_prompt_embeds=nothing.pooled,
        latents=noise_from_seeds([4], (4, 8, 8)),
        guidance_scale=5.0,
        guidance_rescale=GUIDANCE_RESCALE if zero_terminal_snr else 0.0,
        num_inference_steps=4,
        height=64,
        width=64,
    ).images[0]
    difference = np.abs(np.asarray(drawn).astype(int) - np.asarray(expected).astype(int))
    assert difference.max() <= 1


def test_zero_terminal_snr_ends_in_pure_noise_and_leaves_the_first_step_as_it_was(sdxl_folder: Path):
    from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

    plain, zero = (velocity_model(sdxl_folder, on).alphas_cumprod() for on in (False, True))
    assert zero[-1] == 0 and torch.allclose(zero[0], plain[0])
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    torch.testing.assert_close(zero, torch.cumprod(1 - rescale_zero_terminal_snr(betas), 0), rtol=1e-4, atol=1e-6)


def test_another_reading_of_the_same_weights_is_other_work(sdxl_folder: Path):
    prints = {velocity_model(sdxl_folder, on).fingerprint for on in (False, True)}
    assert len(prints | {"v"}) == 3
    tagged = SDXL(
        SDXLFolder(sdxl_folder, CPU, torch.float32), CPU, torch.float32, 1, "v", usage=Usage("Pony", "score_9")
    )
    assert tagged.fingerprint == "v" and tagged.sampling_fingerprint != "v"


def test_a_distilled_checkpoint_is_drawn_in_its_own_steps(sdxl_folder: Path):
    parts = SDXLFolder(sdxl_folder, CPU, torch.float32)
    usage = Usage(most_steps=3, most_guidance=1.0, distilled="SDXL-Lightning")
    fast = SDXL(parts, CPU, torch.float32, 4096, "x", usage=usage)
    text, nothing = fast.encode_prompts(["an orc"]), fast.encode_prompts([""])
    drawn = [
        np.asarray(fast.sample(text, nothing, seeds=[1], size=(64, 64), steps=steps, guidance=guidance)[0])
        for steps, guidance in ((20, 5.0), (3, 1.0))
    ]
    assert np.array_equal(*drawn)


def test_nothing_is_loaded_before_use_and_unload_really_frees(sdxl_folder: Path):
    loads: list[str] = []

    class Counting(SDXLFolder):
        def unet(self):
            loads.append("unet")
            return super().unet()

        def vae(self):
            loads.append("vae")
            return super().vae()

    sdxl = SDXL(Counting(sdxl_folder, CPU, torch.float32), CPU, torch.float32, 4096, "tiny")
    assert loads == []
    text = sdxl.encode_prompts(["a"])
    assert loads == []
    sdxl.sample(text, text, seeds=[1], size=(64, 64), steps=1, guidance=2.0)
    watch = weakref.ref(sdxl.unet())
    sdxl.unload("unet")
    gc.collect()
    assert watch() is None
    sdxl.decode(torch.zeros(1, 4, 8, 8))
    assert sorted(loads) == ["unet", "vae"]
    sdxl.unload()
    sdxl.decode(torch.zeros(1, 4, 8, 8))
    assert loads.count("vae") == 2
    with pytest.raises(BadInput, match="text_encoder'"):
        sdxl.unload("text_encoder")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_seed_means_the_same_picture_on_a_gpu(sdxl: SDXL, sdxl_folder: Path):
    device = torch.device("cuda")
    on_gpu = SDXL(SDXLFolder(sdxl_folder, device, torch.float32), device, torch.float32, 64 * 64, "tiny")
    pictures = []
    for model in (sdxl, on_gpu):
        text = model.encode_prompts(["a robot"])
        assert text.embeds.device.type == model.device.type
        pictures.append(as_array(model.sample(text, text, seeds=[7], size=(64, 64), steps=3, guidance=2.0)[0]))
    assert np.abs(pictures[0] - pictures[1]).mean() < 2
    assert np.abs(pictures[0] - pictures[1]).max() < 16
