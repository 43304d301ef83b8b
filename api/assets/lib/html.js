// What pages use of lit-html, in one place.
export { html, svg, nothing, render } from "./lit/lit-html.js";
export { repeat } from "./lit/directives/repeat.js";
export { live } from "./lit/directives/live.js";
