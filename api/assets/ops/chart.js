// Charts as SVG: lines over the last quarter of an hour, and bars.

import { html, nothing, svg } from "../lib/html.js";
import { redraw } from "../lib/page.js";
import { hour } from "../lib/format.js";

const WIDTH = 600;
const HEIGHT = 150;
const LONGEST = 15 * 60_000;
const SHORTEST = 2 * 60_000;
const RECENT = 3 * 60_000;
/** Between points further apart than this nothing is known. */
const GAP = 45_000;

/** The next rounder number: 1, 2 or 5 times a power of ten. */
export function ceiling(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((times) => times * power).find((it) => it >= value * 0.999);
}

/** Lines through points, broken where there is a gap. */
function path(points, x, y) {
  let text = "";
  let before;
  for (const [at, value] of points) {
    if (value === null || value === undefined) {
      before = undefined;
      continue;
    }
    text += `${before !== undefined && at - before < GAP ? "L" : "M"}${x(at).toFixed(1)} ${y(value).toFixed(1)}`;
    before = at;
  }
  return text;
}

/** The time that charts show: what is known, and no more than a quarter of an hour. */
function span(points) {
  const known = (points.at(-1)?.[0] ?? 0) - (points[0]?.[0] ?? 0);
  return Math.min(Math.max(known, SHORTEST), LONGEST);
}

let hovered;

/**
 * @param {{title: string, lines: {name: string, points: [number, number][]}[], show: (value: number) => string}} of
 */
export function lineChart({ title, lines, show }) {
  const end = Math.max(0, ...lines.map((line) => line.points.at(-1)?.[0] ?? 0)) || Date.now();
  const top = ceiling(Math.max(...lines.flatMap((line) => line.points.map((point) => point[1] ?? 0)), 0));
  const time = Math.max(...lines.map((line) => span(line.points)));
  const x = (at) => WIDTH - ((end - at) / time) * WIDTH;
  const y = (value) => HEIGHT - (value / top) * (HEIGHT - 6);
  const at = hovered?.title === title ? end - (1 - hovered.part) * time : undefined;
  const near = (points) => points.reduce((best, point) =>
    (!best || Math.abs(point[0] - at) < Math.abs(best[0] - at) ? point : best), undefined);
  const last = (line) => (at === undefined ? line.points.at(-1) : near(line.points))?.[1];
  const hover = (event) => {
    const box = event.currentTarget.getBoundingClientRect();
    hovered = { title, part: (event.clientX - box.x) / box.width };
    redraw();
  };
  const leave = () => {
    hovered = undefined;
    redraw();
  };
  return html`
    <figure class="chart card">
      <figcaption><span class="chart-title">${title}</span><span class="muted">${at ? hour(at) : "now"}</span></figcaption>
      <ul class="legend">${lines.map((line, index) => html`
        <li><span class="key k${index}" aria-hidden="true"></span>${line.name} <strong>${show(last(line) ?? null)}</strong></li>`)}</ul>
      <p class="top-value muted" aria-hidden="true">${show(top)}</p>
      <svg viewBox="0 0 ${WIDTH} ${HEIGHT}" preserveAspectRatio="none" role="img" @pointermove=${hover} @pointerleave=${leave}
        aria-label="${title}: ${lines.map((line) => `${line.name} ${show(line.points.at(-1)?.[1] ?? null)}`).join(", ")}">
        ${[0.5, 1].map((part) => svg`<line class="rule" x1="0" x2=${WIDTH} y1=${y(top * part)} y2=${y(top * part)}></line>`)}
        <line class="base" x1="0" x2=${WIDTH} y1=${HEIGHT} y2=${HEIGHT}></line>
        ${lines.map((line, index) => svg`<path class="line k${index}" d=${path(line.points, x, y)}></path>`)}
        ${at ? svg`<line class="cursor" x1=${x(at)} x2=${x(at)} y1="0" y2=${HEIGHT}></line>` : nothing}
      </svg>
      <p class="axis muted" aria-hidden="true"><span>${Math.round(time / 60_000)} min ago</span><span>now</span></p>
    </figure>`;
}

/** A line of the last minutes, without anything around it. */
export function spark(all, label) {
  const since = (all.at(-1)?.[0] ?? 0) - RECENT;
  const points = all.filter((point) => point[0] >= since);
  const end = points.at(-1)?.[0] ?? Date.now();
  const top = Math.max(...points.map((point) => point[1] ?? 0), 1e-9);
  const time = span(points);
  const d = path(points, (at) => 100 - ((end - at) / time) * 100, (value) => 23 - (value / top) * 21);
  return html`<svg class="spark" viewBox="0 0 100 24" preserveAspectRatio="none" role="img" aria-label=${label}><path class="line k0" d=${d}></path></svg>`;
}

/** Bars over time. */
export function barChart({ title, bars, show, name }) {
  const top = ceiling(Math.max(...bars.map((bar) => bar.value), 0));
  const wide = WIDTH / Math.max(bars.length, 1);
  return html`
    <figure class="chart card">
      <figcaption><span class="chart-title">${title}</span><span class="muted">at most ${show(top)}</span></figcaption>
      <svg viewBox="0 0 ${WIDTH} ${HEIGHT}" preserveAspectRatio="none" role="img" aria-label=${title}>
        ${[0.5, 1].map((part) => svg`<line class="rule" x1="0" x2=${WIDTH} y1=${HEIGHT - part * (HEIGHT - 6)} y2=${HEIGHT - part * (HEIGHT - 6)}></line>`)}
        <line class="base" x1="0" x2=${WIDTH} y1=${HEIGHT} y2=${HEIGHT}></line>
        ${bars.map((bar, index) => {
          const high = (bar.value / top) * (HEIGHT - 6);
          return svg`<rect class="bar-fill" x=${index * wide + wide * 0.12} width=${wide * 0.76} y=${HEIGHT - high} height=${high}><title>${name(bar)}: ${show(bar.value)}</title></rect>`;
        })}
      </svg>
      <p class="axis muted" aria-hidden="true"><span>${bars.length ? name(bars[0]) : ""}</span><span>${bars.length ? name(bars.at(-1)) : ""}</span></p>
    </figure>`;
}
