// Follows a stream of Server-Sent Events for as long as the page is looked at.
//
// Read with fetch and not by an EventSource, which cannot send a token. A stream that breaks is opened
// again after a while, and told of the last message that is here; so is one that was refused (503). A
// hidden page lets go of its connection: browsers have six for each server.

import { refused, signed, signedOut } from "./sign-in.js";

const SOONEST = 500;
const LATEST = 10_000;

/** The messages of a stream: its fields by name (HTML Living Standard, 9.2.6). */
async function* messages(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (text + value).split("\n\n");
    text = parts.pop();
    for (const part of parts) {
      const message = {};
      for (const line of part.split("\n")) {
        const [, name, content] = /^([^:]*):? ?(.*)$/.exec(line);
        message[name] = name === "data" && "data" in message ? `${message.data}\n${content}` : content;
      }
      yield message;
    }
  }
}

/**
 * @param {string} path the stream
 * @param {(message: any) => void} told what each message says
 * @param {(live: boolean) => void} [changed] whether the connection stands
 * @returns {() => void} ends it
 */
export function follow(path, told, changed = () => {}) {
  let ending;
  let last;
  let wait = SOONEST;
  let timer;
  const close = () => {
    clearTimeout(timer);
    ending?.abort();
    ending = undefined;
  };
  const listen = async (signal) => {
    const headers = { Accept: "text/event-stream", ...signed() };
    if (last) headers["Last-Event-ID"] = last;
    const response = await fetch(path, { headers, signal, cache: "no-store" });
    if (response.status === 401) refused();
    // Nothing more will ever come.
    if (response.status === 204) return false;
    if (!response.ok) return true;
    wait = SOONEST;
    changed(true);
    for await (const message of messages(response.body)) {
      if (signal.aborted) return false;
      last = message.id ?? last;
      wait = Number(message.retry) || wait;
      if (message.data !== undefined) told(JSON.parse(message.data));
    }
    return true;
  };
  const open = async () => {
    close();
    if (document.hidden || signedOut()) return;
    const { signal } = (ending = new AbortController());
    const again = await listen(signal).catch(() => true);
    if (signal.aborted || !again) return;
    changed(false);
    timer = setTimeout(open, wait * (0.5 + Math.random()));
    wait = Math.min(wait * 2, LATEST);
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
