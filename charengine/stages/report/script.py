"""What the report's page does by itself: copies, enlarges pictures, and shows the cell that two sliders choose.

Without it the page says the same: every picture and every line is in it already. Nothing is asked of any server; the page's own policy
forbids it.
"""

from __future__ import annotations

import base64
import hashlib

SCRIPT = """
"use strict";
document.documentElement.classList.add("js");
const every = (what, inside = document) => [...inside.querySelectorAll(what)];

// copy: what stands beside the button; where the browser forbids it, it is marked, to be copied by hand
function mark(place) {
  const range = document.createRange();
  range.selectNodeContents(place);
  getSelection().removeAllRanges();
  getSelection().addRange(range);
}
for (const button of every(".copy")) {
  button.addEventListener("click", async () => {
    const place = document.getElementById(button.dataset.copies);
    let said = "Copied";
    try {
      await navigator.clipboard.writeText(place.textContent);
    } catch {
      mark(place);
      said = document.execCommand("copy") ? "Copied" : "Marked: press Ctrl+C";
    }
    button.textContent = said;
    setTimeout(() => { button.textContent = "Copy"; }, 3000);
  });
}

// enlarge: every picture that says how it was drawn
const large = document.getElementById("large");
function enlarge(picture) {
  large.querySelector("img").src = picture.src;
  large.querySelector("img").alt = picture.alt;
  large.querySelector("p").textContent = picture.dataset.about;
  large.showModal();
}
function enlargeable(picture) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "zoom";
  picture.replaceWith(button);
  button.append(picture);
  button.addEventListener("click", () => enlarge(picture));
}
every("img[data-about]").forEach(enlargeable);
large.addEventListener("click", (event) => { if (event.target.matches("dialog, button")) large.close(); });

// the sliders: over the cells of the table, whose pictures they show
const steps = document.getElementById("slide-step"), strengths = document.getElementById("slide-strength");
const heads = every(".cells thead th[data-strength]");
function strengthsOf(step) {
  return heads.filter((head) => head.dataset.step === step || head.dataset.step === "0").map((head) => head.dataset.strength);
}
const allSteps = [...new Set(heads.map((head) => head.dataset.step))].filter((step) => step !== "0");
function show() {
  const step = allSteps[steps.value], has = strengthsOf(step);
  const strength = has[strengths.value], from = strength === "0" ? "0" : step;
  const head = heads.find((one) => one.dataset.step === from && one.dataset.strength === strength);
  steps.setAttribute("aria-valuetext", "step " + step);
  strengths.setAttribute("aria-valuetext", "strength " + strength);
  document.getElementById("said-step").textContent = "step " + step;
  document.getElementById("said-strength").textContent = strength;
  document.getElementById("chosen").textContent = head.dataset.numbers;
  for (const place of every("#slid figure")) {
    const drawn = document.querySelector(
      `.cells td[data-step="${from}"][data-strength="${strength}"][data-prompt="${place.dataset.prompt}"] img`);
    const picture = place.querySelector("img");
    picture.closest("button").hidden = !drawn;
    place.querySelector(".none").hidden = Boolean(drawn);
    if (drawn) {
      picture.src = drawn.src;
      picture.alt = drawn.alt;
      picture.dataset.about = drawn.dataset.about;
    }
  }
}
function choose(step, strength) {
  steps.value = allSteps.indexOf(step);
  strengths.max = strengthsOf(step).length - 1;
  strengths.value = strengthsOf(step).indexOf(strength);
  show();
}
if (steps) {
  steps.max = allSteps.length - 1;
  steps.disabled = allSteps.length < 2;
  const picked = document.querySelector(".cells thead th.pinned") || heads[heads.length - 1];
  strengths.addEventListener("input", show);
  steps.addEventListener("input", () => {  // the nearest strength that this checkpoint was drawn at
    const wanted = Number(document.getElementById("said-strength").textContent);
    const has = strengthsOf(allSteps[steps.value]);
    choose(allSteps[steps.value], has.reduce((a, b) => Math.abs(b - wanted) < Math.abs(a - wanted) ? b : a));
  });
  choose(picked.dataset.step === "0" ? allSteps[0] : picked.dataset.step, picked.dataset.strength);
}

// the folder that this page lies in, where it is a file
if (location.protocol === "file:") {
  const folder = decodeURIComponent(location.pathname.replace(/[/][^/]*$/, ""));
  for (const place of every(".here")) place.textContent = /^[-+./\\w]+$/.test(folder) ? folder : "'" + folder.replaceAll("'", "'\\\\''") + "'";
}
"""

DIGEST = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
# the browser itself holds that nothing is asked of anybody: this one script, styles and pictures of the page's own
POLICY = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{DIGEST}'; base-uri 'none'; form-action 'none'"
