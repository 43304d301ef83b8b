// A product's picture, drawn from its id: a tile of simple forms, always the same for the same id.

import { html } from "../lib/html.js";

const PALETTES = [
  ["#f3e3c9", "#0f5c4d", "#e2843b", "#f6c667", "#23302b"],
  ["#dbe7e4", "#17494d", "#e9b44c", "#c8553d", "#8fb8ad"],
  ["#f7e1d7", "#7b3e3a", "#e59866", "#4a6670", "#f2c14e"],
  ["#e4e3f1", "#3a3f73", "#ef8354", "#8d99ca", "#f4d58d"],
  ["#e8efd8", "#40632f", "#d9a441", "#86a86b", "#a4482f"],
  ["#f5dfe3", "#6d2e46", "#d5a021", "#a26769", "#365f6b"],
  ["#dfeaf2", "#1f4e79", "#f2a65a", "#72a1c4", "#e4572e"],
  ["#f1ead8", "#5b4636", "#c9a227", "#6b9080", "#bc4b32"],
];
const FORMS = [
  "M0 0h40a40 40 0 0 1-40 40z",
  "M40 0v40a40 40 0 0 1-40-40z",
  "M40 40h-40a40 40 0 0 1 40-40z",
  "M0 40v-40a40 40 0 0 1 40 40z",
  "M0 20a20 20 0 0 1 40 0z",
  "M0 20a20 20 0 0 0 40 0z",
  "M20 2a18 18 0 1 1 0 36a18 18 0 1 1 0-36",
  "M0 40 20 0l20 40z",
  "M0 0l40 20-40 20z",
  "M0 0h20v40h-20z",
  "M20 6a14 14 0 1 1 0 28a14 14 0 1 1 0-28m0 8a6 6 0 1 0 0 12a6 6 0 1 0 0-12",
];

/** Numbers that follow from a text (FNV-1a, then xorshift). */
function numbers(text) {
  let state = 0x811c9dc5;
  for (const letter of text) state = Math.imul(state ^ letter.codePointAt(0), 0x01000193) >>> 0;
  return (most) => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    state >>>= 0;
    return state % most;
  };
}

const drawn = new Map();

/** The picture as a `data:` address. */
function address(id) {
  if (drawn.has(id)) return drawn.get(id);
  const next = numbers(id);
  const [ground, ...inks] = PALETTES[next(PALETTES.length)];
  let forms = "";
  for (let cell = 0; cell < 9; cell += 1) {
    const [x, y] = [(cell % 3) * 40, Math.floor(cell / 3) * 40];
    const ink = inks[next(inks.length)];
    const form = next(FORMS.length + 1);
    // Some cells are full, so that the others stand out.
    const full = next(4) === 0 ? `<path fill="${inks[next(inks.length)]}" d="M0 0h40v40h-40z"/>` : "";
    const shape = form < FORMS.length ? `<path fill="${ink}" d="${FORMS[form]}"/>` : "";
    forms += `<g transform="translate(${x} ${y})">${full}${shape}</g>`;
  }
  const svg = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 120 120"><path fill="${ground}" d="M0 0h120v120H0z"/>${forms}</svg>`;
  const made = `data:image/svg+xml,${encodeURIComponent(svg)}`;
  drawn.set(id, made);
  return made;
}

/** The name stands beside it, so it says nothing to those who hear the page. */
export const picture = (id, size = 120) =>
  html`<img class="picture" src=${address(id)} alt="" width=${size} height=${size} decoding="async">`;
