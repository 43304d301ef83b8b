// Follows a stream of Server-Sent Events for as long as the page is looked at.
//
// An EventSource comes back by itself when its connection breaks, and names the last message that it
// has. It gives up when it is refused (503); then another one is made, which names the message in
// its address. A hidden page lets go of its connection: browsers have six for each server.

const SOONEST = 500;
const LATEST = 10_000;

/**
 * @param {string} path the stream
 * @param {(message: any) => void} told what each message says
 * @param {(live: boolean) => void} [changed] whether the connection stands
 * @returns {() => void} ends it
 */
export function follow(path, told, changed = () => {}) {
  let source;
  let last;
  let wait = SOONEST;
  let timer;
  const close = () => {
    clearTimeout(timer);
    source?.close();
    source = undefined;
  };
  const open = () => {
    close();
    if (document.hidden) return;
    source = new EventSource(last ? `${path}?lastEventId=${encodeURIComponent(last)}` : path);
    source.onopen = () => {
      wait = SOONEST;
      changed(true);
    };
    source.onmessage = (message) => {
      last = message.lastEventId || last;
      told(JSON.parse(message.data));
    };
    source.onerror = () => {
      changed(false);
      if (source?.readyState !== EventSource.CLOSED) return;
      timer = setTimeout(open, wait * (0.5 + Math.random()));
      wait = Math.min(wait * 2, LATEST);
    };
  };
  const seen = () => (document.hidden ? close() : open());
  document.addEventListener("visibilitychange", seen);
  addEventListener("online", open);
  open();
  return () => {
    document.removeEventListener("visibilitychange", seen);
    removeEventListener("online", open);
    close();
  };
}
