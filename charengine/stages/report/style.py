"""The report's look: one style sheet, light, dark and on paper."""

from __future__ import annotations

# every colour that words are written in has a contrast of 4.5 with paper, card and soft (tests/stages/report/test_style.py)
LIGHT = {
    "paper": "#faf9f7",
    "card": "#ffffff",
    "ink": "#23262b",
    "muted": "#5f646c",
    "grid": "#e3e1dc",
    "faint": "#8b909a",
    "accent": "#b3361f",
    "soft": "#f2efe9",
    "good": "#2f6d42",
    "warn": "#8a5d00",
    "s0": "#0069a4",
    "s1": "#b04d00",
    "s2": "#00704f",
    "s3": "#a03f78",
    "s4": "#7a6000",
    "s5": "#35618e",
}
DARK = {
    "paper": "#16181b",
    "card": "#1e2125",
    "ink": "#e6e4df",
    "muted": "#a2a7b0",
    "grid": "#34383e",
    "faint": "#6d737d",
    "accent": "#ff8a70",
    "soft": "#262a2f",
    "good": "#7fc796",
    "warn": "#e3b341",
    "s0": "#58a6e8",
    "s1": "#f28e52",
    "s2": "#4cc9a0",
    "s3": "#e08bbd",
    "s4": "#d6b84a",
    "s5": "#8ccbf2",
}
PAPER = {"paper": "#fff", "card": "#fff", "soft": "#f5f5f5", "ink": "#111", "muted": "#555", "grid": "#ddd"}


def _root(colours: dict[str, str]) -> str:
    return ":root{" + ";".join(f"--{name}:{colour}" for name, colour in colours.items()) + "}"


CSS = (
    f"""
:root{{color-scheme:light dark}}{_root(LIGHT)}
@media (prefers-color-scheme:dark){{{_root(DARK)}}}
@media print{{{_root(PAPER)}}}
"""
    + """
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.6 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",Arial,sans-serif;-webkit-font-smoothing:antialiased}
main{max-width:1080px;margin:0 auto;padding:56px 28px 96px}
h1{font:600 44px/1.1 ui-serif,Georgia,"Times New Roman",serif;letter-spacing:-.01em;margin:0 0 12px;overflow-wrap:anywhere}
h2{font:600 25px/1.25 ui-serif,Georgia,"Times New Roman",serif;margin:0 0 6px}
h3{font-size:15px;margin:26px 0 8px}
p{margin:0 0 14px;max-width:70ch}
section{margin-top:56px}
.eyebrow{color:var(--muted);font-size:13px;letter-spacing:.08em;text-transform:uppercase;margin-bottom:10px}
.prompt{font:italic 19px/1.5 ui-serif,Georgia,serif;color:var(--muted);max-width:62ch}
.lead{color:var(--muted)}
.facts{display:flex;flex-wrap:wrap;gap:6px 28px;margin:18px 0 0;padding:0;list-style:none;font-size:14px}
.facts b{display:block;font-weight:400;color:var(--muted);font-size:12px}
.card{background:var(--card);border:1px solid var(--grid);border-radius:12px;padding:26px}
.pick{margin-top:34px;display:grid;grid-template-columns:minmax(0,5fr) minmax(0,4fr);gap:34px;align-items:center}
.pick h2{font-size:29px}
.pick ul,.notes{padding-left:1.1em;margin:8px 0 0}
.pick li,.notes li{margin:5px 0}
.numbers{display:grid;grid-template-columns:repeat(auto-fit,minmax(120px,1fr));gap:16px;margin-top:20px}
.number b{display:block;font:600 26px/1.2 ui-serif,Georgia,serif}
.number span{font-size:12.5px;color:var(--muted);line-height:1.35;display:block}
.bar{height:5px;border-radius:3px;background:var(--grid);margin:7px 0 5px;overflow:hidden}
.bar i{display:block;height:100%;background:var(--s0)}
.warn{border-left:3px solid var(--warn);padding:12px 18px;background:var(--soft);border-radius:0 8px 8px 0;margin-top:26px}
.warn p{margin:0 0 4px;font-weight:600}
img{max-width:100%;height:auto;border-radius:6px;display:block}
figure{margin:0}
figcaption{font-size:13.5px;color:var(--muted);margin-top:8px}
.scenes{display:grid;grid-template-columns:repeat(4,1fr);gap:8px;margin-top:18px}
.scenes img{width:100%;border:1px solid var(--grid)}
.mosaic{display:grid;grid-template-columns:repeat(2,1fr);gap:8px}
.strip{display:grid;grid-template-columns:repeat(auto-fill,minmax(150px,1fr));gap:8px}
.pair{display:grid;grid-template-columns:1fr 1fr;gap:24px;margin-top:18px}
.views{display:grid;grid-template-columns:repeat(3,1fr);gap:24px;margin-top:26px}
.views img,.mosaic img,.pair img,.strip img{width:100%;border:1px solid var(--grid)}
.views img{height:400px;object-fit:contain;background:#fff;padding:10px}
.caption{font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;margin:10px 0 6px}
.pruned{font-size:13px;color:var(--muted)}
.pruned s{text-decoration-color:var(--accent)}
svg{width:100%;height:auto;display:block;font-family:inherit}
.charts{display:grid;grid-template-columns:1fr 1fr;gap:28px;margin-top:18px}
.wide{overflow-x:auto;margin-top:18px}
.wide img{max-width:none}
table{border-collapse:collapse;width:100%;font-size:14px;font-variant-numeric:tabular-nums}
th{font-weight:500;color:var(--muted);text-align:right;padding:7px 10px;border-bottom:1px solid var(--grid);font-size:12.5px;
vertical-align:bottom}
td{text-align:right;padding:6px 10px;border-bottom:1px solid var(--grid);white-space:nowrap}
th:first-child,td:first-child{text-align:left}
tr.picked td{background:var(--soft);font-weight:600}
tr.picked td:first-child{box-shadow:inset 3px 0 var(--accent)}
td.low{color:var(--accent)}
pre,code{font:13px/1.55 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
pre{background:var(--soft);border-radius:8px;padding:14px 16px;overflow-x:auto;margin:8px 0 0;white-space:pre-wrap;
overflow-wrap:anywhere}
code{background:var(--soft);border-radius:4px;padding:1px 5px}
pre code{padding:0;background:none}
.uses{display:grid;grid-template-columns:repeat(3,minmax(0,1fr));gap:24px}
.uses h3{margin-top:14px}
details{margin-top:16px}
summary{cursor:pointer;color:var(--muted)}
footer{margin-top:72px;color:var(--muted);font-size:13px;border-top:1px solid var(--grid);padding-top:18px}
a,button,input,summary,dialog,.wide{outline-color:var(--accent)}
.take{display:flex;flex-wrap:wrap;gap:12px 28px;align-items:center;margin-top:22px}
.take p,.copied p{margin:0}
a.button,button.button{display:inline-block;min-height:40px;padding:8px 18px;border:0;border-radius:20px;cursor:pointer;font:600 15px/24px
system-ui,sans-serif;background:var(--accent);color:var(--card);text-decoration:none}
.copied{display:flex;flex-wrap:wrap;gap:4px 10px;align-items:center}
.copy{min-width:64px;min-height:28px;border:1px solid var(--muted);border-radius:14px;padding:2px 12px;background:var(--card);
color:var(--ink);font:13px/22px system-ui,sans-serif;cursor:pointer}
.block{position:relative}
.block .copy{position:absolute;top:8px;right:8px}
.block pre{padding-right:88px}
.zoom{display:block;width:100%;padding:0;border:0;background:none;cursor:zoom-in;border-radius:6px}
.natural .zoom{width:auto}
.view-words{font-size:13px;color:var(--muted);margin-top:8px}
dialog{border:0;border-radius:12px;padding:16px;background:var(--card);color:var(--ink);max-width:min(94vw,1100px);max-height:94vh}
dialog::backdrop{background:#000c}
dialog img{width:min(86vw,68vh,900px);height:auto;margin:0 auto 12px}
dialog p{margin:0 0 12px}
.cells{border-collapse:separate;border-spacing:4px;width:auto}
.cells th,.cells td{padding:0;border:0;text-align:center;min-width:112px}
.cells thead th{padding:4px 2px;color:var(--ink)}
.cells .words{text-align:left;font-size:13px;padding-top:10px;color:var(--muted);white-space:normal}
.cells .words span{position:sticky;left:0;display:inline-block;max-width:min(76vw,60ch)}
.cells img{width:112px;max-width:none}
.cells .pinned{position:sticky;left:0;right:0;z-index:1;background:var(--card);outline:3px solid var(--accent);outline-offset:-2px;border-radius:6px}
.cells .none{color:var(--muted);font-size:12px}
.choose{display:grid;grid-template-columns:1fr 1fr;gap:6px 28px;margin:18px 0 4px}
.choose label{display:block;font-size:14px}
.choose input{width:100%;accent-color:var(--accent);min-height:28px}
.chosen{min-height:1.6em}
#slid{grid-template-columns:repeat(auto-fill,minmax(min(100%,220px),1fr))}
.side td{width:24%;text-align:left}
.side img{width:100%}
.side td:first-child{white-space:normal;width:28%;vertical-align:top}
.script-only{display:none}
.js .script-only{display:revert}
.hidden{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%);white-space:nowrap}
@media (max-width:760px){.pick,.pair,.views,.charts,.uses,.choose{grid-template-columns:minmax(0,1fr)}h1{font-size:34px}
main{padding:32px 18px 64px}.card{padding:18px}.views img{height:300px}
.side tr{display:grid;grid-template-columns:repeat(3,minmax(0,1fr));gap:6px;padding:8px 0}
.side td,.side th{border:0;padding:0;width:auto}.side td:first-child{grid-column:1/-1;width:auto}.side tr:first-child td{display:none}
.scenes{grid-template-columns:1fr 1fr}.strip,#slid{grid-template-columns:repeat(auto-fill,minmax(104px,1fr))}}
@media print{main{max-width:none;padding:0}section{margin-top:32px}figure,.card,tr{break-inside:avoid}.wide{overflow:visible}
.wide img{max-width:100%}.js .script-only,.script-only,.take{display:none}body{font-size:12px}}
"""
)
