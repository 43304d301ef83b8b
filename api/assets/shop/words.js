// What the shop says about orders, and above all about the money.

import { money } from "../lib/format.js";

/** Test cards of the sandbox gateway. */
export const CARDS = [
  { token: "tok_ok", name: "Card that works", detail: "charged at once" },
  { token: "tok_slow", name: "Slow bank", detail: "charged after two seconds" },
  { token: "tok_declined", name: "Card that is declined", detail: "nothing is charged" },
  { token: "tok_insufficient_funds", name: "Card without funds", detail: "declined: insufficient funds" },
  { token: "tok_flaky", name: "Bank with hiccups", detail: "charged at the third try" },
  { token: "tok_timeout", name: "Answer lost", detail: "charged, but the bank's answer is lost at first" },
  { token: "tok_lost", name: "Request lost", detail: "the bank never hears of it" },
];

export const STATUS = {
  pending: { name: "Received", tone: "wait" },
  validated: { name: "Checked", tone: "wait" },
  payment_unknown: { name: "Payment not known", tone: "warn" },
  paid: { name: "Paid", tone: "good" },
  shipped: { name: "Shipped", tone: "good" },
  delivered: { name: "Delivered", tone: "good" },
  rejected: { name: "Rejected", tone: "bad" },
  cancelled: { name: "Cancelled", tone: "off" },
  expired: { name: "Expired", tone: "off" },
  refunding: { name: "Refund under way", tone: "warn" },
  refunded: { name: "Refunded", tone: "off" },
};

const REASONS = {
  unknown_customer: "the shop does not know this customer",
  unknown_product: "a product is not in the catalogue any more",
  product_inactive: "a product is not sold any more",
  out_of_stock: "there is not enough in stock",
  insufficient_credit: "your credit limit would be exceeded",
  price_changed: "a price has changed since you put it into your cart",
  mixed_currencies: "the products have prices in different currencies",
  amount_too_large: "the amount is too large",
  payment_declined: "the bank has declined the payment",
};

/** Why something was refused. */
export const reason = (code, detail) => REASONS[code] ?? detail ?? "for no reason that is known";

/** What became of the money of an order. */
export function moneySays(order) {
  const sum = money(order.total);
  const card = order.payment?.method !== "account";
  const where = card ? "to your card" : "to your credit";
  switch (order.status) {
    case "pending":
    case "validated":
      return "Nothing has been charged yet.";
    case "payment_unknown":
      return "Not known yet whether the bank has charged your card: it is being asked. You are never charged twice.";
    case "paid":
    case "shipped":
    case "delivered":
      return card ? `${sum} were charged to your card, once.` : `${sum} were booked on your account.`;
    case "rejected":
      return "Nothing was charged.";
    case "cancelled":
    case "expired":
      if (order.payment?.status === "captured") return `${sum} had been charged and are being given back ${where}.`;
      if (order.payment?.status === "unknown") return "Should the bank have charged your card after all, it is given back in full.";
      return "Nothing was charged.";
    case "refunding":
      return `${sum} had been charged and are being given back ${where}.`;
    case "refunded":
      return `${sum} had been charged and were given back ${where}.`;
    default:
      return "";
  }
}
