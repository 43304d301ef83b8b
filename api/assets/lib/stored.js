// What the browser keeps: survives reloads, and is the same in all of its tabs.

import { redraw } from "./page.js";

/** A value in localStorage under `millrace.NAME`. */
export function stored(name, initial) {
  const key = `millrace.${name}`;
  const read = () => {
    try {
      return JSON.parse(localStorage.getItem(key)) ?? initial;
    } catch {
      return initial;
    }
  };
  let value = read();
  addEventListener("storage", (event) => {
    if (event.key !== key && event.key !== null) return;
    value = read();
    redraw();
  });
  return {
    get: () => value,
    set(next) {
      value = next;
      try {
        if (next === initial) localStorage.removeItem(key);
        else localStorage.setItem(key, JSON.stringify(next));
      } catch {
        // Full or forbidden: it lasts as long as the page.
      }
      redraw();
    },
  };
}
