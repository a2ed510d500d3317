"""The style sheet and the script of the comparison page, which stand in the page itself.

The page is whole without the script. With it the horizontal axis can be changed and values can be read off. The script
computes no scale: everything that has an x carries its places on all clocks.
"""

from __future__ import annotations

# Found by a search for the largest least distance over three kinds of colour vision; the tests hold that distance.
COLOURS_LIGHT = ("#222222", "#0072e0", "#933c1a", "#00837b", "#561d6e")
COLOURS_DARK = ("#eeeeee", "#1797fb", "#ffae27", "#6aa55f", "#977b9b")
DASHES = ("none", "8 4", "2 3", "12 3 2 3", "5 2")
SIGNS = (
    '<circle r="3.6"/>',
    '<rect x="-3.4" y="-3.4" width="6.8" height="6.8"/>',
    '<path d="M0-4.6L4.3 3.2H-4.3z"/>',
    '<path d="M0-5L5 0 0 5-5 0z"/>',
    '<path d="M0 4.6L4.3-3.2H-4.3z"/>',
)


def style() -> str:
    """The style sheet."""
    light = "".join(f"--c{i}:{colour};" for i, colour in enumerate(COLOURS_LIGHT))
    dark = "".join(f"--c{i}:{colour};" for i, colour in enumerate(COLOURS_DARK))
    runs = "".join(f".c{i}{{--run:var(--c{i});--dash:{dash}}}" for i, dash in enumerate(DASHES))
    return _STYLE.replace("LIGHT", light).replace("DARK", dark) + runs


_STYLE = """
:root{color-scheme:light dark;--page:#fff;--ink:#1c1c1c;--soft:#5f6368;--grid:#e3e5e8;LIGHT}
@media (prefers-color-scheme:dark){:root{--page:#15171a;--ink:#e9eaec;--soft:#a3a8b0;--grid:#30343a;DARK}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1160px;padding:20px 24px 40px;background:var(--page);color:var(--ink);
font:15px/1.45 system-ui,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
h1,th,figcaption,.legend,.notes{overflow-wrap:anywhere}
h1{font-size:23px;line-height:1.25;margin:0 0 4px;text-wrap:balance}
h2{font-size:17px;margin:32px 0 6px}
p{margin:4px 0;max-width:75ch}
.soft,figcaption small,.notes{color:var(--soft)}
.notes{font-size:13.5px;padding-left:18px;margin:4px 0}
table{border-collapse:collapse;width:100%;table-layout:fixed;margin:14px 0 4px;font-variant-numeric:tabular-nums}
th,td{padding:4px 10px;text-align:right;font-weight:400;vertical-align:top}
tbody th,thead td{text-align:left;color:var(--soft);padding-left:0;width:27%}
thead th{font-weight:600;border-bottom:2px solid var(--run)}
tbody tr{border-bottom:1px solid var(--grid)}
.key{display:inline-block;vertical-align:-1px;margin-right:5px;overflow:visible}
.key line,.line{stroke:var(--run);stroke-dasharray:var(--dash)}
.controls{display:flex;flex-wrap:wrap;gap:8px 22px;align-items:center;margin:6px 0 4px;border:0;padding:0}
.legend{display:flex;flex-wrap:wrap;gap:2px 18px}
.switch{display:inline-flex;border:1px solid var(--soft);border-radius:7px;overflow:hidden}
.switch[hidden]{display:none}
.switch button{font:inherit;padding:4px 12px;min-height:34px;border:0;background:none;color:inherit;cursor:pointer}
.switch button[aria-pressed=true]{background:var(--ink);color:var(--page)}
.switch button:focus-visible{outline:2px solid var(--c1);outline-offset:-3px}
figure{margin:14px 0 0;min-width:0}
figcaption{font-weight:600}
figcaption small{font-weight:400;font-size:13px;margin-left:4px}
figcaption{position:relative}
.readout{position:absolute;inset:0;background:var(--page);font-size:13.5px;font-weight:400;
font-variant-numeric:tabular-nums}
.readout:empty{display:none}
.readout b{color:var(--run);margin-left:10px}
.frame{padding:6px 26px 36px 50px}
.wide .frame{padding-right:165px}
.bare .frame{padding-bottom:6px}
.grids{display:grid;grid-template-columns:1fr 1fr;gap:4px 28px}
.plot{display:block;width:100%;overflow:visible;touch-action:pan-y}
.plot text{font-size:12px;fill:var(--soft)}
.grid{stroke:var(--grid)}.base{stroke:var(--soft)}
.tick.x,.unit{text-anchor:middle}
.axis{display:none}
[data-clock=step] .axis.step,[data-clock=tokens] .axis.tokens,[data-clock=flops] .axis.flops,
[data-clock=time] .axis.time{display:inline}
.line,.faint{fill:none;stroke:var(--run);stroke-width:1.7;stroke-linejoin:round;vector-effect:non-scaling-stroke}
.single{stroke-width:1.2}
.faint{stroke-width:1;stroke-opacity:.28}
.plot use,.key use{fill:var(--page);stroke:var(--run);stroke-width:1.6}
line.goal{stroke:var(--soft);stroke-dasharray:1 4;stroke-linecap:round;stroke-width:1.6}
.mark{stroke:var(--run);stroke-width:1.3;stroke-dasharray:1 3}.mark.grown{stroke-dasharray:none;stroke-width:2}
.plot .label,.plot .happened{fill:var(--run)}
.plot .label,.plot .happened,.plot text.goal{paint-order:stroke;stroke:var(--page);
stroke-width:3px;stroke-linejoin:round}
.plot .label{font-weight:600;font-size:13px}
.cursor{stroke:var(--ink);stroke-width:1}
footer{margin-top:34px;font-size:13px;color:var(--soft)}
@media (max-width:700px){
body{padding:14px 14px 30px;font-size:14.5px}h1{font-size:20px}
tr{display:flex;flex-wrap:wrap;justify-content:flex-start}
tbody th{flex:0 0 100%;width:auto;padding:5px 0 0;font-size:13px}thead td{display:none}
td,thead th{flex:1 1 0;min-width:0;padding:1px 3px 4px 0;text-align:left;font-size:13px}
thead th{font-size:12px}.again .full{display:none}
.frame,.wide .frame{padding:6px 20px 36px 42px}.bare .frame{padding-bottom:6px}
.name,.tick.odd{display:none}.grids{display:block}
.plot text{font-size:11px}figcaption{min-height:42px;line-height:1.35}
.switch button{padding:4px 11px}}
@media print{:root{--page:#fff;--ink:#000;--soft:#444;--grid:#ddd;LIGHT}.switch,.readout{display:none!important}
figure,tr{break-inside:avoid}h2,.controls{break-after:avoid}body{max-width:none;padding:0}}
"""

SCRIPT = """
'use strict';
const data = JSON.parse(document.getElementById('data').textContent);
const charts = document.getElementById('charts');
let clock = charts.dataset.clock;

function pathOn(path) {
  const places = data.runs[path.dataset.run].x[clock];
  path.style.display = places ? '' : 'none';
  if (!places) return;
  const each = +path.dataset.each, from = path.dataset.from.split(' ');
  const pieces = path.getAttribute('d').split('M').slice(1).map((piece, number) => {
    const begin = +from[number];
    return piece.trim().split(' ').map((value, at) => {
      if (at % 2) return value;
      const point = at / 2;
      return places[each ? begin + Math.floor(point / each) : Math.max(begin, begin + (point + 1 >> 1) - 1)];
    }).join(' ');
  });
  path.setAttribute('d', pieces.map(piece => 'M' + piece).join(''));
}

function show(name) {
  clock = charts.dataset.clock = name;
  const at = data.clocks.indexOf(name);
  for (const button of document.querySelectorAll('.switch button'))
    button.setAttribute('aria-pressed', button.value === name);
  for (const path of charts.querySelectorAll('path[data-run]')) pathOn(path);
  for (const item of charts.querySelectorAll('[data-x]')) {
    const place = item.dataset.x.split(' ')[at];
    item.style.display = place === '-' ? 'none' : '';
    if (place === '-') continue;
    for (const side of item.tagName === 'line' ? ['x1', 'x2'] : ['x']) item.setAttribute(side, place + '%');
  }
  leave();
}

const digits = (value, most) => value.toLocaleString('en', {maximumSignificantDigits: most});
function count(value) {
  for (const [size, unit] of [[1e12, ' T'], [1e9, ' B'], [1e6, ' M']])
    if (value >= size) return digits(value / size, 4) + unit;
  return Math.round(value).toLocaleString('en');
}
function span(value) {
  for (const [least, size, unit] of [[172800, 86400, ' days'], [7200, 3600, ' h'], [120, 60, ' min']])
    if (value >= least) return digits(value / size, 3) + unit;
  return digits(value, 3) + ' s';
}
const where = {
  step: value => 'step ' + Math.round(value).toLocaleString('en'),
  tokens: value => count(value) + ' tokens',
  flops: value => value.toExponential(2) + ' FLOPs',
  time: value => span(value),
};

function nearest(places, place) {
  let low = 0, high = places.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (places[middle] < place) low = middle + 1; else high = middle;
  }
  return low && place - places[low - 1] < places[low] - place ? low - 1 : low;
}

function leave() {
  for (const line of charts.querySelectorAll('.cursor')) line.setAttribute('visibility', 'hidden');
  for (const text of charts.querySelectorAll('.readout')) text.replaceChildren();
}

function read(share) {
  for (const plot of charts.querySelectorAll('.plot')) {
    const line = plot.querySelector('.cursor');
    for (const side of ['x1', 'x2']) line.setAttribute(side, 100 * share + '%');
    line.setAttribute('visibility', 'visible');
    const text = plot.closest('figure').querySelector('.readout');
    text.replaceChildren(where[clock](share * data.ends[clock]));
    data.runs.forEach((run, number) => {
      const places = run.x[clock], values = run.y[plot.dataset.measure];
      if (!places || !values || 1000 * share > places[places.length - 1] + 5) return;
      const at = nearest(places, 1000 * share);
      const [low, high, middle] = values.map(column => column[at]);
      if (low === null) return;
      const letter = document.createElement('b');
      letter.className = 'c' + number;
      letter.textContent = 'ABCDE'[number];
      const range = high !== undefined && high !== low ? digits(low, 4) + '…' + digits(high, 4) : '';
      const shown = middle === undefined ? range || digits(low, 4) : digits(middle, 4) + (range && ' (' + range + ')');
      text.append(letter, ' ' + shown);
    });
  }
}

for (const plot of charts.querySelectorAll('.plot')) {
  const follow = event => {
    const box = plot.getBoundingClientRect();
    read(Math.min(1, Math.max(0, (event.clientX - box.left) / box.width)));
  };
  plot.addEventListener('pointermove', follow);
  plot.addEventListener('pointerdown', follow);
  plot.addEventListener('pointerleave', event => { if (event.pointerType === 'mouse') leave(); });
}
for (const button of document.querySelectorAll('.switch button'))
  button.addEventListener('click', () => show(button.value));
document.querySelector('.switch').hidden = false;
"""
