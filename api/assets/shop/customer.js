// Who the user is: a customer of the shop, as the server has it, and its orders as they change.

import { get } from "../lib/api.js";
import { follow } from "../lib/live.js";
import { offers, redraw } from "../lib/page.js";
import { says, signedOut } from "../lib/sign-in.js";
import { stored } from "../lib/stored.js";

const chosen = stored("customer", null);
const listeners = new Set();

// Who has signed in is who the token says, whoever was here before.
let now = offers("sign-in") ? own() : chosen.get();
let live = true;
let ending;

function own() {
  const { role, sub } = signedOut() ? {} : says();
  return role === "customer" ? { customerId: sub, name: sub } : null;
}

/** The customer; null if nobody was chosen. */
export const customer = () => now;

/** Whether what is shown is up to date. */
export const connected = () => live;

/** Tells of each order of the customer that changes, and of a break after which to look anew (null). */
export function onOrder(told) {
  listeners.add(told);
  return () => listeners.delete(told);
}

/** Becomes this customer. */
export function become(next) {
  now = next;
  chosen.set(next && { customerId: next.customerId, name: next.name });
  listen();
  redraw();
}

function listen() {
  ending?.();
  ending = undefined;
  live = true;
  if (!now) return;
  const path = `/v1/customers/${encodeURIComponent(now.customerId)}/stream`;
  let begun = false;
  ending = follow(path, (message) => {
    if (message.customer) now = message.customer;
    if (message.reset) listeners.forEach((told) => told(null));
    if (message.order) listeners.forEach((told) => told(message.order));
    redraw();
  }, (connection) => {
    live = connection;
    if (!connection) check();
    // What was read before the stream began may have changed since; one that goes on leaves nothing out.
    if (connection && !begun) listeners.forEach((told) => told(null));
    begun ||= connection;
    redraw();
  });
}

/** Forgets a customer that the shop does not know any more. */
async function check() {
  const asked = now;
  try {
    await find(asked.customerId);
  } catch (error) {
    if (error.status === 404 && now === asked) become(null);
  }
}

/** Asks for a customer by its id. */
export const find = (id) => get(`/v1/customers/${encodeURIComponent(id)}`);

listen();
