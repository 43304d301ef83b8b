// Money, numbers and times as people read them.

const currencies = new Map();

function currency(code) {
  if (!currencies.has(code)) {
    const format = new Intl.NumberFormat("en", { style: "currency", currency: code });
    currencies.set(code, { format, digits: format.resolvedOptions().maximumFractionDigits });
  }
  return currencies.get(code);
}

/** Minor units as they are written: `{amount: 1999, currency: "USD"}` is $19.99. */
export function money(sum) {
  if (!sum) return "–";
  const { format, digits } = currency(sum.currency);
  return format.format(sum.amount / 10 ** digits);
}

/** What somebody has typed as minor units; undefined if it is no amount. */
export function minor(text, code) {
  const { digits } = currency(code);
  const [, whole, part = ""] = /^\s*(\d{1,12})(?:[.,](\d*))?\s*$/.exec(text) ?? [];
  if (whole === undefined || part.length > digits) return undefined;
  return Number(whole + part.padEnd(digits, "0"));
}

export const number = (value) => new Intl.NumberFormat("en").format(value);

/** 1,234 as 1.2 k, where there is little room. */
export const short = (value) =>
  new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 }).format(value);

/** A length of time in milliseconds, in one or two words. */
export function duration(ms) {
  if (ms === null || ms === undefined) return "–";
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 60_000) return `${(ms / 1000).toFixed(ms < 10_000 ? 1 : 0)} s`;
  if (ms < 3_600_000) return `${Math.floor(ms / 60_000)} min ${Math.round((ms % 60_000) / 1000)} s`;
  if (ms < 172_800_000) return `${(ms / 3_600_000).toFixed(1)} h`;
  return `${Math.round(ms / 86_400_000)} days`;
}

const day = new Intl.DateTimeFormat("en", { day: "numeric", month: "short", year: "numeric" });
const minute = new Intl.DateTimeFormat("en", { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
const second = new Intl.DateTimeFormat("en", { hour: "2-digit", minute: "2-digit", second: "2-digit", fractionalSecondDigits: 3, hourCycle: "h23" });

/** When: with the day, unless it is today. */
export function when(text) {
  const time = new Date(text);
  const today = time.toDateString() === new Date().toDateString();
  return today ? `today, ${minute.format(time)}` : `${day.format(time)}, ${minute.format(time)}`;
}

export const clock = (text) => second.format(new Date(text));
export const hour = (text) => minute.format(new Date(text));

/** `1 item`, `2 items`. */
export const count = (number, one, many = `${one}s`) => `${number} ${number === 1 ? one : many}`;
