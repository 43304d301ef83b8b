// The console: its views and what surrounds them.

import { html, nothing } from "../lib/html.js";
import { link, place, run } from "../lib/page.js";
import order from "./order.js";
import parked from "./parked.js";
import pipeline from "./pipeline.js";
import reports from "./reports.js";
import { connected, parkedNow } from "./samples.js";
import { form, leave, signedOut, token } from "../lib/sign-in.js";

const door = {
  title: () => "Sign in",
  view: () => html`<h1>Who are you?</h1><div class="two even">${form("an operator")}</div>`,
};
const views = signedOut() ? { "": door } : { "": pipeline, parked, order, reports };
const NAMES = { "": "Pipeline", parked: "Parked", order: "Orders", reports: "Reports" };

const nav = () => (signedOut() ? nothing : html`${places()} ${token() ? leave() : nothing}`);

const places = () => Object.entries(NAMES).map(([name, title]) => html`
  <a href=${link(name)} aria-current=${place().name === name ? "page" : nothing}>${title}
    ${name === "parked" && parkedNow() ? html`<span class="badge bad">${parkedNow()}</span>` : nothing}</a>`);

const notice = () => (connected() ? nothing : html`
  <p class="notice" role="status">The connection to the api is lost: what is shown is old. It is tried again.</p>`);

document.getElementById("skip").addEventListener("click", (event) => {
  event.preventDefault();
  document.getElementById("main").focus();
});

run(views, [
  { view: nav, into: document.getElementById("nav") },
  { view: notice, into: document.getElementById("notice") },
], "Millrace console");
