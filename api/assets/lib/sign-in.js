// Signing in with a token. It is kept for as long as this tab is open, goes into the header of every
// request, and never into an address.

import { html } from "./html.js";
import { offers } from "./page.js";

const KEY = "millrace.token";

/** The token; null if nobody has signed in. */
export const token = () => sessionStorage.getItem(KEY);

/** Whether somebody has to sign in before anything else. */
export const signedOut = () => offers("sign-in") && !token();

/** The headers of a request. */
export const signed = () => (token() ? { Authorization: `Bearer ${token()}` } : {});

/** What a token says of who has it; nothing, if it is an API key. Only the server knows if it is true. */
export function says(text = token()) {
  try {
    const [, part] = text.split(".");
    const bytes = Uint8Array.from(atob(part.replace(/-/g, "+").replace(/_/g, "/")), (it) => it.charCodeAt(0));
    return JSON.parse(new TextDecoder().decode(bytes));
  } catch {
    return {};
  }
}

/** Begins anew with another token, or with none. */
export function become(next) {
  if (next) sessionStorage.setItem(KEY, next);
  else sessionStorage.removeItem(KEY);
  location.reload();
}

/** The server does not take the token, or does not any more. */
export function refused() {
  if (token()) become(null);
}

const enter = (event) => {
  event.preventDefault();
  become(new FormData(event.target).get("token").trim());
};

/** The form to sign in with. */
export const form = (whose) => html`
  <form class="card form" @submit=${enter}>
    <h2>Sign in</h2>
    <p class="muted">With a token of ${whose}. It is forgotten when this tab is closed, and when it ends.</p>
    <label>Token <input name="token" type="password" required autocomplete="off" spellcheck="false"></label>
    <button class="button">Sign in</button>
  </form>`;

/** Leaves. */
export const leave = () => html`<button type="button" class="button plain" @click=${() => become(null)}>Sign out</button>`;
