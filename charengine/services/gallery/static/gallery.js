// The gallery works without this. With it, pages follow what goes on, texts are copied, and sliders slide.
"use strict";

const EVERY = 1500; // milliseconds from one look to the next: what is told every second is seen within two
document.documentElement.classList.add("scripted");

function say(text) {
  const place = document.getElementById("said");
  if (place) place.textContent = text;
}

// --- parts of a page that are fetched again ---------------------------------------------------------------------------

function focusables(part) {
  return [...part.querySelectorAll("a[href], button, input, select, textarea, summary")];
}

function swap(part, html) {
  const fresh = document.createElement("template");
  fresh.innerHTML = html;
  const before = part.dataset.state || stateOf(part), after = stateOf(fresh.content);
  if (before !== undefined && after !== undefined && before !== after) { location.reload(); return; }
  const olds = [...part.querySelectorAll("[data-piece]")], news = [...fresh.content.querySelectorAll("[data-piece]")];
  const kept = olds.indexOf(document.activeElement && document.activeElement.closest("[data-piece]"));
  const place = focusables(part).indexOf(document.activeElement);
  const chosen = [...part.querySelectorAll("input:checked")].map((one) => one.value);
  if (olds.length === news.length && olds.every((old, i) => old.dataset.piece === news[i].dataset.piece)) {
    olds.forEach((old, i) => { if (old.dataset.seen !== news[i].outerHTML) { const seen = news[i].outerHTML; if (old.outerHTML !== seen) { news[i].dataset.seen = seen; old.replaceWith(news[i]); } else { old.dataset.seen = seen; } } });
  } else {
    part.replaceChildren(fresh.content);
  }
  part.querySelectorAll("input[type=checkbox]").forEach((one) => { one.checked = chosen.includes(one.value); });
  if (kept >= 0 && place >= 0 && !part.contains(document.activeElement)) {
    const now = focusables(part)[place];
    if (now) now.focus({ preventScroll: true });
  }
}

function stateOf(place) {
  const piece = place.querySelector("[data-state]");
  return piece ? piece.dataset.state : undefined;
}

function lost(part, away) {
  const told = document.getElementById("lost");
  if (!away && told) location.reload(); // for the new server's forms
  if (away && !told) part.insertAdjacentHTML("beforebegin", '<p id="lost" class="notice wrong" role="alert">The gallery does not answer: this is from before. It goes on once <code>charengine up</code> runs again.</p>');
}

async function follow(part) {
  let took = 0; // milliseconds of the last look
  for (;;) {
    await new Promise((done) => setTimeout(done, Math.max(EVERY - took, EVERY / 3)));
    const began = performance.now();
    took = 0;
    if (document.hidden) continue;
    try {
      const answer = await fetch(part.dataset.part);
      if (answer.ok) swap(part, await answer.text());
      lost(part, answer.status >= 500);
    } catch { lost(part, true); }
    took = performance.now() - began;
  }
}

document.querySelectorAll("[data-part]").forEach(follow);

// --- copying ----------------------------------------------------------------------------------------------------------

async function copy(button) {
  const text = button.dataset.copy;
  try {
    await navigator.clipboard.writeText(text);
  } catch { // an address that is not this machine's has no clipboard
    const code = button.parentElement.querySelector("code"), range = document.createRange();
    range.selectNodeContents(code);
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    document.execCommand("copy");
  }
  button.textContent = "Copied";
  say(`Copied: ${text}`);
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button.copy");
  if (button) copy(button);
});

// --- forms ------------------------------------------------------------------------------------------------------------

document.addEventListener("submit", (event) => { // a second click does nothing; the server would not start twice either
  const form = event.target;
  if (form.method !== "post") return;
  const large = [...form.querySelectorAll("input[type=file][data-most]")].find((one) => one.files[0] && one.files[0].size > Number(one.dataset.most));
  if (large) {
    event.preventDefault();
    const most = Number(large.dataset.most) / 1e6;
    large.setCustomValidity(`This file has ${(large.files[0].size / 1e6).toFixed(0)} MB; at most ${most} MB are taken.`);
    large.reportValidity();
    large.addEventListener("change", () => large.setCustomValidity(""), { once: true });
    return;
  }
  const pressed = event.submitter || form.querySelector("button");
  setTimeout(() => {
    form.querySelectorAll("button").forEach((one) => { one.disabled = true; });
    pressed.dataset.said = pressed.textContent;
    say(pressed.textContent = pressed.dataset.busy || "Sending…");
  }, 0);
});
window.addEventListener("pageshow", () => document.querySelectorAll("form button").forEach((one) => { // also of a page that one came back to
  one.disabled = false;
  if (one.dataset.said) { one.textContent = one.dataset.said; delete one.dataset.said; }
}));

document.querySelectorAll("input[type=file][accept^=image]").forEach((input) => { // what is chosen is seen
  const shown = document.createElement("p"), before = document.querySelector(`[name=kept_${input.name}]`);
  shown.className = "kept";
  input.after(shown);
  const show = () => {
    const file = input.files[0], reader = new FileReader(), picture = new Image(), out = document.createElement("button");
    Object.assign(out, { type: "button", textContent: "Leave it out", onclick: () => { input.value = ""; show(); input.focus(); } });
    picture.alt = file ? `chosen: ${file.name}` : "";
    reader.onload = () => { picture.src = reader.result; };
    if (file) reader.readAsDataURL(file);
    if (file && before) before.checked = false;
    shown.replaceChildren(...file ? [picture, out] : []);
  };
  input.addEventListener("change", show);
  show();
});

const problems = document.getElementById("problems");
if (problems) problems.focus();

const start = document.getElementById("start");
if (start) {
  const profile = start.querySelector("#profile"), about = start.querySelector("[data-about]:not(option)");
  const estimate = start.querySelector("[data-estimate-here]");
  let waiting = 0;
  const change = () => {
    const chosen = profile.selectedOptions[0];
    const values = chosen ? JSON.parse(chosen.dataset.values) : {};
    about.textContent = chosen ? chosen.dataset.about : "";
    start.querySelectorAll("[data-setting]").forEach((one) => { one.placeholder = values[one.dataset.setting] || ""; });
    clearTimeout(waiting);
    waiting = setTimeout(async () => {
      const asked = new URLSearchParams();
      new FormData(start).forEach((value, name) => { if (typeof value === "string" && value && !["token", "prompt", "once"].includes(name)) asked.set(name, value); });
      try {
        const answer = await fetch(`${start.dataset.estimate}?${asked}`);
        if (answer.ok) estimate.textContent = (await answer.text()).trim();
      } catch { /* the estimate stays as it was */ }
    }, 400);
  };
  profile.addEventListener("change", change);
  start.addEventListener("change", change);
}

// --- pictures that exist: strength, checkpoint, prompt, seed ----------------------------------------------------------

document.querySelectorAll(".explorer").forEach((explorer) => {
  const rows = JSON.parse(explorer.dataset.pictures).map(([prompt, step, strength, seed, digest, identity, adherence]) => ({ prompt, step, strength, seed, digest, identity, adherence }));
  const field = (name) => explorer.querySelector(`[name=${name}]`);
  const strength = field("strength"), step = field("step"), prompt = field("prompt"), seed = field("seed");
  const slider = document.createElement("input");
  Object.assign(slider, { type: "range", min: 0, max: strength.options.length - 1, step: 1, value: strength.selectedIndex, id: "strength-slider" });
  const label = explorer.querySelector("label[for=strength]");
  label.htmlFor = slider.id;
  strength.hidden = true;
  strength.after(slider);
  strength.parentElement.classList.add("slide");
  const nearest = (wanted) => rows.slice().sort((a, b) => cost(a, wanted) - cost(b, wanted))[0];
  const cost = (row, wanted) => (row.prompt !== wanted.prompt) * 1e9 + Math.min(Math.abs(row.strength - wanted.strength), 5) * 1e7
    + (row.strength > 0 && row.step !== wanted.step) * (1e5 + Math.abs(row.step - wanted.step)) + (row.seed !== wanted.seed) * 1e3;
  const show = () => {
    strength.selectedIndex = Number(slider.value);
    const wanted = { prompt: Number(prompt.value), step: Number(step.value), strength: Number(strength.value), seed: Number(seed.value) };
    const row = nearest(wanted), base = nearest({ ...wanted, strength: 0 });
    explorer.querySelector("[data-shown]").src = `/picture/${row.digest}/${explorer.dataset.name}`;
    explorer.querySelector("[data-base]").src = `/picture/${base.digest}/${explorer.dataset.name}-base`;
    const words = row.strength ? `step ${row.step} at strength ${row.strength}` : "strength 0: without the adapter";
    const missed = row.strength !== wanted.strength || (row.strength > 0 && row.step !== wanted.step) ? " (the nearest that was drawn)" : "";
    explorer.querySelector("[data-caption]").textContent = words + missed;
    const numbers = explorer.querySelector("[data-numbers]");
    if (numbers) numbers.textContent = row.identity === null ? "" : ` identity ${row.identity.toFixed(3)}, adherence ${row.adherence.toFixed(3)}`;
    label.textContent = `Strength ${strength.value}`;
    slider.setAttribute("aria-valuetext", words);
  };
  slider.addEventListener("input", show);
  [step, prompt, seed].forEach((one) => one.addEventListener("change", show));
  show();
});
