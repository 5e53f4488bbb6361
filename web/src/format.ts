// Numbers, times and addresses for people.

/** Start and end of an address or a hash. */
export function short(hex: string, head = 6, tail = 4): string {
  return hex.length <= head + tail + 3 ? hex : `${hex.slice(0, head)}…${hex.slice(-tail)}`;
}

/** A sentence with its hashes and addresses shortened. */
export function tidy(text: string): string {
  return text.replace(/0x[0-9a-fA-F]{40,}/g, (hex) => short(hex));
}

/** An amount in 10^-18 OPG as OPG, with all digits that matter. */
export function opg(amount: string | bigint): string {
  let value: bigint;
  try {
    value = BigInt(amount);
  } catch {
    return "unknown";
  }
  const unit = 10n ** 18n;
  const whole = value / unit;
  const fraction = (value % unit).toString().padStart(18, "0").replace(/0+$/, "");
  return `${whole}${fraction ? `.${fraction}` : ""} OPG`;
}

/** A duration in milliseconds. */
export function duration(ms: number): string {
  if (!Number.isFinite(ms)) return "unknown";
  if (ms < 10) return `${Math.round(ms * 10) / 10} ms`;
  if (ms < 1_000) return `${Math.round(ms)} ms`;
  if (ms < 60_000) return `${(ms / 1_000).toFixed(ms < 10_000 ? 2 : 1)} s`;
  return `${Math.floor(ms / 60_000)} min ${Math.round((ms % 60_000) / 1_000)} s`;
}

/** A point in time, with the date unless it is today's, to the second or to the minute. */
export function moment(atMs: number, precision: "second" | "minute" = "second", now = new Date()): string {
  const at = new Date(atMs);
  const time = at.toLocaleTimeString(undefined, { hour: "2-digit", minute: "2-digit", second: precision === "second" ? "2-digit" : undefined });
  if (at.toDateString() === now.toDateString()) return time;
  return `${at.toLocaleDateString(undefined, { year: "numeric", month: "short", day: "numeric" })} ${time}`;
}

/** A share as a percentage. */
export function percent(part: number, whole: number): string {
  if (whole <= 0) return "unknown";
  const share = (100 * part) / whole;
  return `${share < 10 ? share.toFixed(1) : Math.round(share)} %`;
}

/** A count with its noun. */
export function count(n: number, noun: string, plural = `${noun}s`): string {
  return `${n.toLocaleString("en")} ${n === 1 ? noun : plural}`;
}

/** A size in bytes. */
export function size(bytes: number): string {
  if (bytes < 1_024) return `${bytes} B`;
  if (bytes < 1_048_576) return `${(bytes / 1_024).toFixed(1)} KiB`;
  return `${(bytes / 1_048_576).toFixed(1)} MiB`;
}
