// A page of several views, chosen by the address behind the `#`. A view is an object with
// `show(parameters, query)` called when it is entered, `hide()` when it is left, and `view()`, which
// makes its template from what it knows. Whoever changes what is shown calls `redraw()`.

import { render } from "./html.js";

let draw = () => {};
let due = false;

/** Shows what has changed, once, after everything that happens now. */
export function redraw() {
  if (due) return;
  due = true;
  queueMicrotask(() => {
    due = false;
    draw();
  });
}

/** Whether this server offers `what`: the words in the page's `data-offer`. */
export const offers = (what) => document.documentElement.dataset.offer.split(" ").includes(what);

/** The address of a view. */
export const link = (path, query) => {
  const text = new URLSearchParams(query ?? {}).toString();
  return `#/${path}${text && `?${text}`}`;
};

/** Goes to a view. */
export const go = (path, query) => {
  location.hash = link(path, query);
};

/** Changes the address of the view that is shown, without another entry in the history. */
export const stay = (path, query) => {
  history.replaceState(null, "", link(path, query));
};

/** Where the page is: the view's name, what follows it, and the query. */
export function place() {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  const [name, ...rest] = path.split("/").map(decodeURIComponent);
  return { name, rest, query: new URLSearchParams(query) };
}

/** Says something to those who hear the page. */
export function announce(text) {
  document.getElementById("said").textContent = text;
}

/**
 * Runs the page.
 * @param {Record<string, object>} views by name; `""` is the first one
 * @param {{view: () => unknown, into: Element}[]} parts what surrounds the view
 * @param {string} title the name of the page
 */
export function run(views, parts, title) {
  const main = document.getElementById("main");
  const scrolled = new Map();
  let shown;
  let key;
  draw = () => {
    for (const { view, into } of parts) render(view(), into);
    if (!shown) return;
    render(shown.view(), main);
    const name = shown.title?.();
    document.title = name ? `${name} · ${title}` : title;
  };
  const enter = () => {
    const { name, rest, query } = place();
    const next = views[name] ?? views[""];
    const first = shown === undefined;
    if (!first) {
      scrolled.set(key, scrollY);
      shown.hide?.();
    }
    shown = next;
    key = location.hash;
    shown.show?.(rest, query);
    draw();
    if (first) return;
    scrollTo(0, scrolled.get(key) ?? 0);
    main.focus({ preventScroll: true });
  };
  // What the page showed before its scripts were there.
  for (const { into } of [...parts, { into: main }]) into.replaceChildren();
  addEventListener("hashchange", enter);
  enter();
}
